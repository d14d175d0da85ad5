"""`hfbudget log`, as it is typed."""

from __future__ import annotations

import csv
import io
import json
import time

import pytest
from command_line import Shell

from pytest_hfbudget.history.usage_log import FILE, LoggedRun, UsageLog, entries
from pytest_hfbudget.ledger import Charge, Refusal
from pytest_hfbudget.reporting import EndpointLine, Report


@pytest.fixture
def logged(hfbudget: Shell) -> Shell:
    """A run of now: two calls, one refusal, one endpoint."""
    now = time.time()
    free = Charge(
        "test_a.py::test_a[x]",
        "conversational",
        "meta/llama",
        "groq",
        12,
        30,
        1500,
        "prices.toml",
        "200",
        False,
        0.25,
    )
    report = Report(
        spent=0,
        cap=None,
        calls=2,
        refused=1,
        charges=(free, free._replace(model="other/model", nano_usd=None, status="503")),
        refusals=(Refusal("test_b", "session budget", "meta/llama", "not for the log"),),
        endpoints=(EndpointLine("acme/llm", "paused", 550_000, 3, True, True, True),),
    )
    run = LoggedRun("0123456789ab", "/src/project", now - 60, now)
    UsageLog(hfbudget.state_dir / FILE).write(run, entries(report, run), keep_days=90)
    return hfbudget


def test_a_table_shows_every_entry_and_their_sum(logged: Shell) -> None:
    shown = logged("log")
    assert shown.returncode == 0
    names, *rows, total = shown.stdout.splitlines()
    assert names.split() == ["when", "(UTC)", "run", "test", "what", "tokens", "cost", "status"]
    assert len(rows) == 4
    assert "test_a.py::test_a[x]  meta/llama via groq   12 + 30  <$0.0001" in "\n".join(rows)
    assert "not sent: session budget" in "\n".join(rows)
    assert "$0.00055 (3 min)" in "\n".join(rows)
    assert total == (
        "in all: 2 calls, $0.000552, 3 min of endpoints, 1 refused, "
        "1 without a known price, not in the sum"
    )


def test_json_has_every_column_and_money_as_text(logged: Shell) -> None:
    told = logged.json("log", "--status", "200")
    assert told["schema"] == 1
    (entry,) = told["entries"]
    assert (entry["model"], entry["usd"], entry["kind"]) == ("meta/llama", "0.0000015", "call")
    assert entry["at"].endswith("+00:00")
    assert told["total"]["calls"] == 1
    assert told["total"]["usd"] == "0.0000015"


def test_csv_is_read_back_by_anything(logged: Shell) -> None:
    rows = list(csv.DictReader(io.StringIO(logged("log", "--csv", "--kind=call").stdout)))
    assert [row["usd"] for row in rows] == ["0.0000015", ""]
    assert rows[0]["test"] == "test_a.py::test_a[x]"


EVIL = "\x1b[2J\x9b1m\u202e=evil\nnext"


@pytest.fixture
def evil(hfbudget: Shell) -> Shell:
    """A log with names that a terminal would obey and a spreadsheet would calculate."""
    now = time.time()
    names = ("=1+1", "+1", "-1", "@sum", EVIL)
    calls = tuple(
        Charge(f"{n}.py", "chat", n, n, 1, 1, 1, n, "200", False, 0.1, where=n) for n in names
    )
    report = Report(spent=0, cap=None, calls=5, refused=0, charges=calls)
    run = LoggedRun("0123456789ab", "=project", now - 60, now)
    UsageLog(hfbudget.state_dir / FILE).write(run, entries(report, run), keep_days=90)
    return hfbudget


@pytest.mark.parametrize(
    "options", [(), ("--csv",), ("--json",), ("--by=model",), ("--by=test", "--csv")]
)
def test_nothing_that_a_terminal_obeys_is_printed(evil: Shell, options: tuple[str, ...]) -> None:
    shown = evil("log", *options).stdout
    assert "evil" in shown
    assert all(line.isprintable() for line in shown.split("\n"))


def test_json_still_has_the_names_as_they_are(evil: Shell) -> None:
    assert evil.json("log")["entries"][-1]["model"] == EVIL


def test_no_cell_of_csv_is_calculated(evil: Shell) -> None:
    rows = list(csv.DictReader(io.StringIO(evil("log", "--csv").stdout)))
    assert [row["model"] for row in rows[:4]] == ["'=1+1", "'+1", "'-1", "'@sum"]
    assert not any(cell.startswith(("=", "+", "-", "@")) for row in rows for cell in row.values())


def test_sums_by_model(logged: Shell) -> None:
    totals = logged.json("log", "--by", "model", "--kind", "call")["totals"]
    assert [(one["model"], one["calls"], one["usd"]) for one in totals] == [
        ("meta/llama", 1, "0.0000015"),
        ("other/model", 1, "0"),
    ]
    assert not any("nano_usd" in one for one in totals)  # money is a decimal string, once
    assert "1 ?" in logged("log", "--by", "model").stdout


def test_an_endpoint_is_found_by_its_name(logged: Shell) -> None:
    (entry,) = logged.json("log", "--endpoint", "acme/llm")["entries"]
    assert (entry["minutes"], entry["usd"]) == (3, "0.00055")


def test_a_limit_shows_the_latest_and_sums_up_all(logged: Shell) -> None:
    told = logged.json("log", "--limit", "1")
    assert len(told["entries"]) == 1
    assert told["total"]["calls"] == 2


@pytest.mark.parametrize(("when", "entries"), [("1h", 4), ("2w", 4), ("2999-01-01", 0)])
def test_since(logged: Shell, when: str, entries: int) -> None:
    assert len(logged.json("log", "--since", when)["entries"]) == entries


def test_until_has_the_whole_day_in_it(logged: Shell) -> None:
    today = time.strftime("%Y-%m-%d", time.gmtime())
    assert len(logged.json("log", "--until", today)["entries"]) == 4
    assert logged.json("log", "--until", "2001-01-01T00:00Z")["entries"] == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--since", "yesterday"), "--since yesterday: write a day"),
        (("--json", "--csv"), "one of --json and --csv"),
        (("--by", "colour"), "'colour' is not one of"),
        (("--since", "9999999999d"), "--since 9999999999d: write a day"),
        (("--since", "\u00b2d"), "write a day"),
        (("--until", "9999-12-31"), "--until 9999-12-31: write a day"),
    ],
)
def test_wrong_usage_is_exit_code_2(logged: Shell, arguments: tuple[str, ...], said: str) -> None:
    done = logged("log", *arguments)
    assert done.returncode == 2
    assert said in done.stderr


def test_no_log_at_all_is_no_error(hfbudget: Shell) -> None:
    shown = hfbudget("log")
    assert (shown.returncode, shown.stdout) == (0, "the usage log has nothing of that kind\n")
    assert json.loads(hfbudget("log", "--json").stdout)["entries"] == []


def test_a_corrupt_log_is_one_line_and_exit_code_1(hfbudget: Shell) -> None:
    hfbudget.state_dir.mkdir(parents=True)
    (hfbudget.state_dir / FILE).write_text("no database at all " * 100)
    done = hfbudget("log")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: ")
    assert "file is not a database" in done.stderr
    assert done.stderr.count("\n") == 1
