"""The page as text; how it looks and what its script does is for tests/browser."""

from __future__ import annotations

import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from written_report import LEAST, full, saved

pytest.importorskip("jinja2")

from pytest_hfbudget.reporting.html import fill, page, write

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\u2028\ud800"


class Tags(HTMLParser):
    """The tags of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.attributes: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append(tag)
        self.attributes += [name for name, _ in attrs]


def test_a_page_of_the_emptiest_report_has_its_headline() -> None:
    text = page([saved(LEAST)])
    assert "$0.00</strong> spent" in text
    assert "without a session budget" in text


def test_every_table_is_in_the_page() -> None:
    text = page([saved(full()), saved(full())])
    aggregates = ["tests", "models", "providers", "prices", "runs"]
    for key in ["refusals", "endpoints", *aggregates, "calls"]:
        assert f'<section id="{key}"' in text


def test_an_amount_is_short_and_its_title_is_exact() -> None:
    content = full()
    content["session"]["spent_usd"] = "0.012345678"
    text = page([saved(content)])
    assert '<strong title="$0.012345678 = 12,345,678 nano-USD">$0.01</strong>' in text


def test_what_is_less_than_a_cap_looks_less_in_the_headline_and_in_its_row() -> None:
    content = full()
    content["session"].update(spent_usd="0.9996", cap_usd="1")
    content["tests"][0].update(spent_usd="0.4999", cap_usd="0.5", uptime_usd="0")
    text = page([saved(content)])
    assert ">$0.9996</strong> spent" in text
    assert "<span>$0.4999</span>" in text
    data = json.loads(
        html.unescape(text.split('id="data"', 1)[1].split(">", 1)[1].split("<", 1)[0])
    )
    assert {"1": "$0.4999"} in data["tests"]["shown"].values()


def test_a_bar_that_is_hardly_filled_still_shows_what_most_of_it_was_spent_on() -> None:
    assert fill((550_000 + 4_900, 550_000), 50_000_000) == (0.02, 1.98)
    assert fill((0, 0), 50_000_000) == (0, 0)
    assert fill((2, 0), 1) == (100, 0)
    assert fill((2, 0), None) is None


def test_every_text_of_others_is_escaped() -> None:
    content = full()
    clean = Tags(page([saved(content)]))
    content["run"] = EVIL
    content["tests"][0].update(id=EVIL, outcome=EVIL)
    for key in ("test", "task", "model", "provider", "price_source", "status"):
        content["calls"][0][key] = EVIL
    content["calls"][1]["where"] = EVIL
    content["refusals"][0].update(test=EVIL, scope=EVIL, model=EVIL, message=EVIL)
    content["endpoints"][0].update(name=EVIL, state=EVIL, shares={EVIL: "0.1"})
    text = page([saved(content), saved(content)])
    evil = Tags(text)
    assert evil.found.count("script") == clean.found.count("script") == 2
    assert "img" not in evil.found
    assert not [name for name in evil.attributes if name.startswith("on")]
    assert html.escape(EVIL).replace("&#x27;", "&#39;") in text


def test_the_page_needs_nothing_from_anywhere() -> None:
    text = page([saved(full())])
    assert re.findall(r"""(?:src|href)=["'](?!#|data:)""", text) == []
    assert "default-src 'none'" in text
    assert "url(" not in text
    assert "@import" not in text


def test_an_amount_beyond_what_javascript_counts_exactly_travels_as_text() -> None:
    content = full()
    content["tests"][0]["cap_usd"] = "1000000000.000000001"
    assert '"1000000000000000001"' in page([saved(content)])


def test_half_a_character_does_not_keep_the_page_from_being_written(tmp_path: Path) -> None:
    content = full()
    content["tests"][0]["id"] = "test_\ud800"
    write([saved(content)], tmp_path / "page.html")
    assert "test_?" in (tmp_path / "page.html").read_text(encoding="utf-8")
