"""The page in a browser."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from large_report import ADDRESS, ENDPOINT, NAMES, report
from opened_page import Open

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

pytestmark = pytest.mark.browser

# What is meant is a second; a machine that is busy with other tests may take longer.
GENEROUS_MS = 3000
PHONE = {"viewport": {"width": 390, "height": 844}}
OPENED = """() => {
    const [entry] = performance.getEntriesByType("navigation");
    return entry.loadEventEnd - entry.startTime;
}"""


def _column(page: Page, section: str, number: int) -> list[str]:
    cells = page.locator(f"#{section} tbody tr td:nth-child({number})")
    return list(cells.all_inner_texts())


def _sorted_by(page: Page, section: str, label: str) -> None:
    page.locator(f"#{section} th button", has_text=label).first.click()


def test_ten_thousand_calls_open_in_under_a_second(show: Open, tmp_path: Path) -> None:
    page = show(report(10_000, tests=400))
    page.wait_for_function("performance.getEntriesByType('navigation')[0].loadEventEnd > 0")
    took = page.evaluate(OPENED)
    size = (tmp_path / "page.html").stat().st_size
    print(f"10,000 calls: {took:.0f} ms to the load event, {size / 1e6:.2f} MB")
    assert size < 2_000_000
    assert took < GENEROUS_MS
    assert page.locator("#calls .pages span").inner_text() == "1 to 25 of 10,000"


def test_sorting_ten_thousand_calls_is_quick(show: Open) -> None:
    page = show(report(10_000, tests=400))
    took = page.evaluate("""() => {
        const start = performance.now();
        document.querySelectorAll("#calls th button")[2].click();
        return performance.now() - start;
    }""")
    print(f"10,000 calls are sorted in {took:.0f} ms, data read included")
    assert took < GENEROUS_MS


def test_a_column_is_sorted_by_its_figures_and_says_so(show: Open) -> None:
    page = show(report(200))
    _sorted_by(page, "calls", "in")
    heading = page.locator("#calls th", has_text="in").first
    assert heading.get_attribute("aria-sort") == "descending"
    figures = [int(text) for text in _column(page, "calls", 8)]
    assert len(figures) == 25
    assert figures == sorted(figures, reverse=True)
    _sorted_by(page, "calls", "in")
    assert heading.get_attribute("aria-sort") == "ascending"
    assert page.locator("#calls th[aria-sort]").count() == 1


def test_names_are_sorted_as_people_count(show: Open) -> None:
    page = show(report(200, tests=40))
    _sorted_by(page, "tests", "test")
    names = [name for name in _column(page, "tests", 1) if "test_streams" in name]
    numbers = [int(name.rpartition("[")[2].rstrip("]")) for name in names]
    assert numbers == sorted(numbers)


def test_a_drawn_row_is_the_row_that_came_with_the_page(show: Open) -> None:
    page = show(report(200, hostile=True))
    for section in ("tests", "calls", "endpoints", "models"):
        body = page.locator(f"#{section} tbody")
        search = page.locator(f"#{section} input")
        rows = _rows(page, section)
        if search.count():
            search.fill("zzz")
            assert body.locator("tr").count() == 0
            search.fill("")
        else:
            for _ in range(2):
                _sorted_by(page, section, "")
        assert sorted(_rows(page, section)) == sorted(rows)


def _rows(page: Page, section: str) -> list[str]:
    """The cells of a table with all that is in them, but for white space between tags."""
    rows: list[str] = page.eval_on_selector_all(
        f"#{section} tbody tr",
        """rows => rows.map(row => [...row.cells].map(cell => [
            cell.className, cell.title, cell.textContent, cell.querySelector("span").className,
            cell.querySelector("span").title,
            Number(cell.querySelector("rect")?.getAttribute("width") ?? -1).toFixed(1),
        ].join("|")).join("\\n"))""",
    )
    return rows


def test_a_search_finds_calls_by_all_of_its_words(show: Open) -> None:
    page = show(report(500))
    page.locator("#calls input").fill("estimated GROQ")
    rows = page.locator("#calls tbody tr").all_inner_texts()
    assert rows
    assert all("estimated" in row and "groq" in row for row in rows)


def test_pages_are_turned_to_the_last(show: Open) -> None:
    page = show(report(60))
    turn, back = page.locator("#calls [data-step='1']"), page.locator("#calls [data-step='-1']")
    assert back.is_disabled()
    turn.click()
    turn.click()
    assert _column(page, "calls", 1) == [str(number) for number in range(51, 61)]
    assert page.locator("#calls .pages span").inner_text() == "51 to 60 of 60"
    assert turn.is_disabled()


def test_names_are_never_run(show: Open, complaints: list[str], asked_for: list[str]) -> None:
    page = show(report(200, hostile=True))
    page.locator("#calls input").fill("script")
    assert "<script>" in page.locator("#calls tbody").inner_text()
    assert page.title().endswith("hf budget")
    assert page.locator("main script, main img, main b").count() == 0
    assert complaints == []
    assert len(asked_for) == 1


def test_what_was_smuggled_in_all_the_same_would_be_refused(
    show: Open, complaints: list[str]
) -> None:
    page = show(report(2))
    page.evaluate("""() => {
        const script = document.createElement("script");
        script.textContent = "document.title = 'owned'";
        document.body.append(script);
    }""")
    assert page.title() != "owned"
    assert any("Content Security Policy" in complaint for complaint in complaints)


def test_nothing_is_requested_beyond_the_page(show: Open, asked_for: list[str]) -> None:
    page = show(*(report(30, day=day) for day in range(1, 9)))
    page.locator("#theme").click()
    page.wait_for_load_state("networkidle")
    assert [url.rpartition("/")[2] for url in asked_for] == ["page.html"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_theme_follows_the_system_until_the_user_chooses(show: Open, scheme: str) -> None:
    page = show(report(5), color_scheme=scheme)
    ground = "getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(ground)
    assert (before == "rgb(20, 23, 26)") == (scheme == "dark")
    page.locator("#theme").click()
    chosen = page.evaluate(ground)
    assert chosen != before
    page.reload()
    assert page.evaluate(ground) == chosen


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_enough_contrast(show: Open, scheme: str) -> None:
    page = show(report(5), color_scheme=scheme)
    colours = {
        name: page.evaluate(
            "name => getComputedStyle(document.documentElement).getPropertyValue(name)",
            f"--{name}",
        )
        for name in ("paper", "sheet", "ink", "quiet", "accent", "bad")
    }
    for ground in ("paper", "sheet"):
        for text in ("ink", "quiet", "accent", "bad"):
            assert _contrast(colours[text], colours[ground]) >= 4.5, (text, ground)


def _contrast(one: str, other: str) -> float:
    """As the Web Content Accessibility Guidelines define it."""
    dark, light = sorted((_luminance(one), _luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    red, green, blue = (int(colour.strip()[n : n + 2], 16) / 255 for n in (1, 3, 5))
    linear = [
        c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in (red, green, blue)
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("hostile", [False, True])
def test_a_phone_never_scrolls_the_page_sideways(show: Open, hostile: bool) -> None:
    page = show(report(100, hostile=hostile), report(100, day=23, hostile=hostile), **PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.locator("#calls").bounding_box() is not None


CUT_OFF = """() => [...document.querySelectorAll("body *")].filter(each => {
    const box = each.getBoundingClientRect();
    const clips = getComputedStyle(each).overflowX !== "visible";
    return box.right > innerWidth + 1 || (clips && each.scrollWidth > each.clientWidth + 1);
}).map(each => each.outerHTML.slice(0, 200))"""


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_cut_off(show: Open, width: int) -> None:
    runs = [{**report(60, day=day), "timeline": TIMELINE} for day in range(1, 9)]
    page = show(*runs, viewport={"width": width, "height": 844})
    for number in range(4):
        page.locator("#tests .opens").nth(number).click()
    assert page.evaluate(CUT_OFF) == []


def test_on_a_phone_each_figure_has_its_label(show: Open) -> None:
    page = show(report(60), **PHONE)
    said = "cell => getComputedStyle(cell, '::before').content"
    for row in ("#calls tbody tr:first-child", "#calls tbody tr:last-child"):
        cells = page.locator(f"{row} td.n").all()
        labels = [cell.evaluate(said).strip('"').strip() for cell in cells]
        assert labels == ["#", "cost", "in", "out", "seconds"]


def test_the_page_names_the_project(show: Open) -> None:
    page = show(report(5))
    assert page.title().startswith("rag-service: ")
    assert page.locator("header").inner_text().startswith("rag-service")


def _test_row(page: Page, number: int) -> Locator:
    name = f"{NAMES[number]}[{number}]"
    return page.locator("#tests tbody tr", has=page.get_by_text(name, exact=True))


def test_the_cap_of_a_test_and_what_it_has_spent_are_one_bar(show: Open) -> None:
    made = report(60, tests=4)
    made["tests"][1].update(spent_usd="0.001", uptime_usd="0.004", cap_usd="0.01")
    page = show(made)
    bar = _test_row(page, 1).locator("svg.bar")
    parts = [float(part.get_attribute("width") or 0) for part in bar.locator("rect").all()]
    assert parts == [10, 40]
    assert _test_row(page, 1).locator("td").nth(2).inner_text() == "$0.01"
    _sorted_by(page, "tests", "calls")
    drawn = [float(part.get_attribute("width") or 0) for part in bar.locator("rect").all()]
    assert drawn == parts
    assert _test_row(page, 2).locator("svg.bar").count() == 0  # it has no cap


def test_a_cap_is_never_rounded(show: Open) -> None:
    made = report(60, tests=4)
    made["tests"][1]["cap_usd"] = "0.000012345"
    page = show(made)
    cap = _test_row(page, 1).locator("td").nth(2)
    assert cap.inner_text() == "$0.000012345"
    _sorted_by(page, "tests", "calls")
    assert cap.inner_text() == "$0.000012345"


def test_what_endpoints_cost_a_test_is_in_its_row(show: Open) -> None:
    page = show(report(60))
    heads = page.locator("#tests th").all_inner_texts()
    uptime = next(n for n, head in enumerate(heads) if "of which uptime" in head)
    assert _test_row(page, 0).locator("td").nth(uptime).inner_text() == "$0.012"
    assert page.locator("#shares").count() == 0


def test_endpoints_are_named_and_their_addresses_are_not_shown(show: Open) -> None:
    page = show(report(60))
    assert ENDPOINT in page.locator("#models").inner_text()
    assert ENDPOINT in page.locator("#calls").inner_text()
    assert ADDRESS not in page.content()


@pytest.mark.parametrize("width", [390, 1280])
def test_the_chart_over_runs_has_values(show: Open, complaints: list[str], width: int) -> None:
    runs = [report(20 * day, day=day) for day in range(1, 6)]
    page = show(*runs, viewport={"width": width, "height": 844})
    spent = page.locator("#runs .values b").all_inner_texts()
    exact = [f"${float(run['session']['spent_usd']):.9f}".rstrip("0") for run in runs]
    assert spent == [f"${float(one[1:]):.4f}" for one in exact]
    assert page.locator("#runs .values b").last.is_visible()
    assert page.locator("#runs .marks li").first.inner_text() == spent[-1]
    assert f"Newest {spent[-1]}" in page.locator("#runs .note").inner_text()
    said = page.locator("#runs .at")
    page.locator("#runs .trend .part").nth(1).hover()
    assert said.inner_text().startswith(f"2026-11-02 03:10: {exact[1]} of ")
    page.locator("#runs .trend").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert said.inner_text().startswith(f"2026-11-03 03:10: {exact[2]} of ")
    assert complaints == []


def test_the_chart_tells_runs_of_almost_the_same_cost_apart(show: Open) -> None:
    runs = [report(10, day=day) for day in (1, 2, 3)]
    for run, spent in zip(runs, ("0.0268", "0.028", "0.0251"), strict=True):
        run["session"]["spent_usd"] = spent
    page = show(*runs)
    assert page.locator("#runs .values b").all_inner_texts() == ["$0.0268", "$0.0280", "$0.0251"]
    assert page.locator("#runs .marks li").all_inner_texts() == ["$0.0280", "$0.0140", "$0.00"]


def test_the_values_of_the_chart_have_room_on_a_phone(show: Open) -> None:
    runs = [report(10, day=day) for day in range(1, 7)]
    for number, run in enumerate(runs):
        run["session"]["spent_usd"] = f"0.000{210 + number}"
    page = show(*runs, **PHONE)
    values = page.locator("#runs .values b")
    assert values.all_inner_texts()[0] == "$0.00021"
    wide = "each => { const text = document.createRange(); text.selectNodeContents(each);"
    wide += " return text.getBoundingClientRect().width < each.clientWidth; }"
    assert all(values.nth(n).evaluate(wide) for n in range(6))


def test_a_name_is_broken_before_its_parameters(show: Open) -> None:
    page = show(report(3), viewport={"width": 390, "height": 844})
    name = page.locator("#tests .opens", has_text="test_streams").first
    assert name.locator("span").inner_html().split("<wbr>")[1:] == [
        "test_chat.py::",
        "test_streams",
        "[llama-3.1-8b]",
        "[1]",
    ]


def test_many_runs_have_an_axis_instead_of_a_value_each(show: Open) -> None:
    page = show(*(report(5, day=day) for day in range(1, 29)))
    assert page.locator("#runs .values").count() == 0
    assert page.locator("#runs .marks li").count() == 3
    assert page.locator("#runs .ends").inner_text() == "2026-11-01 03:10 to 2026-11-28 03:10"


def test_a_test_opens_to_its_refusals_its_endpoints_and_its_calls(show: Open) -> None:
    made = report(200, tests=5)
    page = show(made)
    for number in (0, 3):
        _test_row(page, number).locator(".opens").click()
    details = page.locator("#tests .detail")
    assert details.count() == 2
    for number, (key, words) in {0: ("shares", "Uptime"), 3: ("refusals", "Refused calls")}.items():
        detail = _test_row(page, number).locator("xpath=following-sibling::tr[1]")
        calls = [call for call in made["calls"] if call["test"] == made["tests"][number]["id"]]
        assert detail.locator("caption").all_inner_texts()[-1] == f"Calls ({len(calls)})"
        assert detail.locator("table").last.locator("tbody tr").count() == len(calls)
        assert words in detail.inner_text(), key
    _test_row(page, 0).locator(".opens").click()
    assert details.count() == 1


def test_a_keyboard_opens_a_test(show: Open) -> None:
    page = show(report(40))
    opens = page.locator("#tests .opens").first
    opens.focus()
    page.keyboard.press("Enter")
    assert opens.get_attribute("aria-expanded") == "true"
    assert page.locator("#tests .detail").is_visible()


def test_a_test_of_very_many_calls_says_how_many_more_there_are(show: Open) -> None:
    page = show(report(500, tests=2))
    page.locator("#tests .opens").first.click()
    assert page.locator("#tests .detail tbody tr").count() <= 110
    assert "and 150 more" in page.locator("#tests .detail").inner_text()


def test_calls_of_no_test_open_too(show: Open) -> None:
    made = report(20)
    made["calls"][0].update(test=None, where="import of conftest.py")
    page = show(made)
    page.locator("#tests input").fill("no test")
    page.locator("#tests .opens").click()
    assert page.locator("#tests .detail caption").all_inner_texts() == ["Calls (1)"]


def test_a_keyboard_sorts_a_table(show: Open) -> None:
    page = show(report(40))
    page.locator("#tests th button").first.focus()
    page.keyboard.press("Enter")
    assert page.locator("#tests th").first.get_attribute("aria-sort") == "ascending"


def test_without_javascript_all_aggregates_can_be_read(show: Open) -> None:
    page = show(report(100), report(100, day=23), java_script_enabled=False)
    for section in ("tests", "models", "providers", "endpoints", "prices", "runs", "refusals"):
        assert page.locator(f"#{section} tbody tr").count() > 0
    assert page.locator("button:visible, input:visible").count() == 0
    assert page.locator("#calls .pages").inner_text().strip() == "1 to 25 of 100"


def test_it_prints(show: Open) -> None:
    page = show(report(60), color_scheme="dark")
    printed = page.pdf(format="A4")
    assert printed.startswith(b"%PDF")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.locator("nav").is_hidden()


TIMELINE = {
    "began_at": "2026-01-01T00:00:00.000+00:00",
    "seconds": 20.0,
    "paid_minutes": 2,
    "paid_usd": "0.002",
    "least_minutes": 2,
    "least_usd": "0.002",
    "collected_minutes": 5,
    "collected_usd": "0.005",
    "endpoints": [
        {
            "name": "acme/a",
            "stretches": [
                {"state": "cold start", "start": 0.0, "stop": 5.0},
                {"state": "in use", "start": 5.0, "stop": 12.0},
                {"state": "paused", "start": 12.0, "stop": 20.0},
            ],
        }
    ],
    "tests": [
        {"test": "t.py::test_free", "worker": "", "start": 0.0, "stop": 4.0, "endpoints": []},
        {"test": "t.py::test_a", "worker": "", "start": 5.0, "stop": 12.0, "endpoints": ["acme/a"]},
    ],
}


@pytest.mark.parametrize("width", [390, 1280])
def test_the_timeline_is_read_by_pointer_and_by_keyboard(
    show: Open, complaints: list[str], width: int
) -> None:
    page = show({**report(3), "timeline": TIMELINE}, viewport={"width": width, "height": 800})
    said, lanes = page.locator("#timeline .at"), page.locator("#timeline svg")
    assert lanes.count() == 2
    assert "acme/a" in page.locator("#timeline h3").first.inner_text()
    lanes.first.locator("rect.in-use").hover()
    assert said.inner_text() == "in use: 5.0 s to 12.0 s, 7.0 s"
    lanes.first.focus()
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    assert said.inner_text() == "t.py::test_a (acme/a): 5.0 s to 12.0 s, 7.0 s"
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert complaints == []


def test_an_amount_just_below_its_cap_looks_less_also_after_the_table_is_drawn_again(
    show: Open,
) -> None:
    made = report(200)
    spent, cap = 499_900_000, 500_000_000
    first, *others = made["tests"]
    first.update(spent_usd=str(spent / 1e9), cap_usd=str(cap / 1e9), uptime_usd="0")
    page = show({**made, "tests": [first, *others]})
    _sorted_by(page, "tests", "test")
    row = page.locator("#tests tbody tr", has_text=first["id"]).first
    assert row.locator("td").nth(1).inner_text() == "$0.4999"
