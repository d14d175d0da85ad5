"""`hfbudget report`: from files to a terminal, or to a page."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import Shell


@pytest.fixture
def write(hfbudget: Shell) -> Any:
    """Write a report, by default of a run that spent a cent."""

    def make(name: str, **more: Any) -> Path:
        content: dict[str, Any] = {
            "schema": 1,
            "run": name,
            "date": "2026-11-22T03:10:00+00:00",
            "session": {"spent_usd": "0.01", "cap_usd": "0.04", "calls": 1, "refused": 0},
            "tests": [
                {
                    "id": "test_a.py::test_a",
                    "outcome": "passed",
                    "spent_usd": "0.01",
                    "cap_usd": None,
                    "calls": 1,
                    "refused": 0,
                }
            ],
            "calls": [],
            "refusals": [],
            "endpoints": [],
        }
        path = hfbudget.directory / f"{name}.json"
        path.write_text(json.dumps({**content, **more}))
        return path

    return make


def test_a_report_is_shown_in_the_terminal(hfbudget: Shell, write: Any) -> None:
    write("one")
    done = hfbudget("report", "one.json")
    assert done.returncode == 0
    assert "run one, 2026-11-22 03:10 UTC\nspent $0.01 of $0.04 ██████░" in done.stdout
    assert "test_a.py::test_a  $0.01" in done.stdout


def test_several_reports_are_put_in_order_by_their_dates(hfbudget: Shell, write: Any) -> None:
    for day in (22, 24, 23):
        write(f"day{day}", date=f"2026-11-{day}T00:00:00Z")
    said = hfbudget("report", "day22.json", "day24.json", "day23.json").stdout
    assert said.startswith("run day24,")
    runs = said[said.index("All runs") :]
    assert runs.index("day24") < runs.index("day23") < runs.index("day22")


def test_what_a_terminal_would_obey_is_not_printed(hfbudget: Shell, write: Any) -> None:
    path = write("evil", run="\x1b]0;owned\x07")
    content = json.loads(path.read_text())
    content["tests"][0]["id"] = "\x1b[2Jtest[bold]\r\n"
    path.write_text(json.dumps(content))
    said = hfbudget("report", "evil.json").stdout
    assert "\x1b" not in said
    assert "\x07" not in said
    assert "test[bold]" in said


def test_a_log_in_ascii_still_gets_the_figures(hfbudget: Shell, write: Any) -> None:
    write("one")
    done = hfbudget("report", "one.json", PYTHONIOENCODING="ascii")
    assert done.returncode == 0
    assert "spent $0.01 of $0.04" in done.stdout


def test_the_file_may_come_from_the_environment(hfbudget: Shell, write: Any) -> None:
    write("one")
    assert "run one" in hfbudget("report", HFBUDGET_REPORT="one.json").stdout


def test_without_a_file_it_says_where_to_get_one(hfbudget: Shell) -> None:
    done = hfbudget("report")
    assert done.returncode == 2
    assert "pytest --hf-report FILE" in done.stderr


def test_a_file_that_is_no_report_is_one_line(hfbudget: Shell, write: Any) -> None:
    write("later", schema=9)
    done = hfbudget("report", "later.json")
    assert done.returncode == 1
    assert done.stderr == (
        "Error: later.json is not a report of --hf-report: "
        "its schema is 9, and this release reads 1\n"
    )


def test_the_schema_is_printed(hfbudget: Shell) -> None:
    schema = json.loads(hfbudget("report", "--schema").stdout)
    assert schema["properties"]["schema"] == {"const": 1}


def test_a_page_is_written(hfbudget: Shell, write: Any) -> None:
    pytest.importorskip("jinja2")
    write("one")
    done = hfbudget("report", "one.json", "--html", "page.html")
    assert (done.returncode, done.stdout) == (0, "page.html: 1 run\n")
    assert "<!DOCTYPE html>" in (hfbudget.directory / "page.html").read_text()


def test_a_page_that_can_not_be_written_is_one_line(hfbudget: Shell, write: Any) -> None:
    pytest.importorskip("jinja2")
    write("one")
    done = hfbudget("report", "one.json", "--html", "no/where.html")
    assert done.returncode == 1
    assert done.stderr == "Error: no/where.html could not be written: No such file or directory\n"


def test_without_jinja_the_page_says_what_to_install(hfbudget: Shell, write: Any) -> None:
    write("one")
    (hfbudget.directory / "jinja2.py").write_text("raise ModuleNotFoundError('jinja2')")
    done = hfbudget("report", "one.json", "--html", "page.html", PYTHONPATH=".")
    assert done.returncode == 1
    assert done.stderr == 'Error: the page needs: pip install "pytest-hfbudget[html]"\n'
    assert "run one" in hfbudget("report", "one.json", PYTHONPATH=".").stdout


def test_the_terminal_needs_neither_jinja_nor_huggingface_hub(hfbudget: Shell, write: Any) -> None:
    path = write("one")
    code = (
        "import sys; from pytest_hfbudget.cli import main\n"
        f"main(['report', {str(path)!r}], standalone_mode=False)\n"
        "assert not {'jinja2', 'huggingface_hub', 'pytest'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_two_reports_are_compared_in_the_terminal(hfbudget: Shell, write: Any) -> None:
    write("base", session={"spent_usd": "0.005", "cap_usd": None, "calls": 1, "refused": 0})
    write("now")
    done = hfbudget("report", "now.json", "--compare", "base.json")
    assert done.returncode == 0
    first, *_ = done.stdout.splitlines()
    assert first == "$0.01, before $0.005: +$0.005 (+100 %)"
    assert "in all     $0.005  $0.01     +$0.005  +100 %" in done.stdout


def test_a_comparison_in_markdown_begins_with_the_mark_that_a_job_looks_for(
    hfbudget: Shell, write: Any
) -> None:
    write("base")
    write("now")
    done = hfbudget("report", "now.json", "--compare", "base.json", "--markdown")
    assert done.returncode == 0
    assert done.stdout.startswith("<!-- pytest-hfbudget: what the tests cost -->\n### ")
    assert "**$0.01, as before**" in done.stdout


def test_of_several_reports_the_newest_is_compared(hfbudget: Shell, write: Any) -> None:
    write("base")
    write("old", date="2026-11-21T00:00:00Z")
    spent = {"spent_usd": "0.03", "cap_usd": None, "calls": 1, "refused": 0}
    write("new", date="2026-11-23T00:00:00Z", session=spent)
    done = hfbudget("report", "new.json", "old.json", "--compare", "base.json")
    assert done.stdout.startswith("$0.03, before $0.01: ")


def test_one_report_in_markdown_is_the_summary_of_a_step(hfbudget: Shell, write: Any) -> None:
    write("now")
    done = hfbudget("report", "now.json", "--markdown")
    assert done.stdout.startswith("### hf budget\n\n**$0.01** of $0.04 spent, 1 call\n")


def test_a_base_that_is_no_report_is_named(hfbudget: Shell, write: Any) -> None:
    write("now")
    done = hfbudget("report", "now.json", "--compare", "nothing.json")
    assert done.returncode == 1
    assert "nothing.json" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_page_and_a_comparison_exclude_each_other(hfbudget: Shell, write: Any) -> None:
    write("now")
    done = hfbudget("report", "now.json", "--compare", "now.json", "--html", "page.html")
    assert done.returncode == 2
    assert "leave out --compare and --markdown" in done.stderr
    assert not (hfbudget.directory / "page.html").exists()
