"""`hfbudget bill`, as it is typed, in front of the emulator's bill."""

from __future__ import annotations

import json
import sqlite3
import threading
from typing import Any

import pytest
from billed_runs import BilledRuns

OP = "bill_by_session"


def told(runs: BilledRuns, *words: str) -> Any:
    return json.loads(runs.shell("bill", *words, "--json").stdout)


def test_the_last_run_is_one_object(billed_runs: BilledRuns) -> None:
    billed_runs.run(ago_s=60)
    run = billed_runs.run(3)
    done = billed_runs.shell("bill", "--json")
    assert done.returncode == 0
    usd = json.loads(done.stdout)["ledger_usd"]
    assert json.loads(done.stdout) == {
        "run": run,
        "session_id": f"hfbudget-{run}",
        "status": "reported",
        "ledger_usd": usd,
        "billed_usd": usd,
        "requests": 3,
        "billed_requests": 3,
        "drift": 0.0,
    }
    assert float(usd) > 0


def test_a_table_shows_ledger_bill_and_drift(billed_runs: BilledRuns) -> None:
    run = billed_runs.run(factor=0.5)
    done = billed_runs.shell("bill")
    assert done.returncode == 0
    names, row = done.stdout.splitlines()
    assert names.split() == [
        "run",
        "when",
        "(UTC)",
        "ledger",
        "billed",
        "drift",
        "requests",
        "status",
    ]
    assert row.startswith(run)
    assert row.rstrip().endswith("+100 %  2 of 2    reported")


@pytest.mark.slow
def test_several_runs_are_a_list_the_oldest_first(billed_runs: BilledRuns) -> None:
    names = [billed_runs.run(ago_s=ago * 86_400) for ago in (9, 3, 1)]
    assert [row["run"] for row in told(billed_runs, "--last", "2")] == names[1:]
    assert [row["run"] for row in told(billed_runs, "--since", "4d")] == names[1:]
    assert [row["run"] for row in told(billed_runs, "--last", "9")] == names
    assert len(billed_runs.shell.hub.log(op=OP, phase="arrived")) == 3  # one answer for all


def test_a_run_is_named_by_its_id_or_its_beginning(billed_runs: BilledRuns) -> None:
    for name in ("aa00", "aa11", "bb00"):
        billed_runs.run(name=name)
    assert told(billed_runs, "aa11")["run"] == "aa11"
    assert told(billed_runs, "b")["run"] == "bb00"
    unclear = billed_runs.shell("bill", "aa")
    assert unclear.returncode == 2
    assert unclear.stderr == (
        "Error: several runs begin with aa: aa00, aa11. Write more of its id.\n"
    )
    missing = billed_runs.shell("bill", "cc")
    assert missing.returncode == 2
    assert missing.stderr.startswith("Error: the usage log has no run 'cc' that called the router")


@pytest.mark.parametrize(
    ("factor", "allowed", "code"),
    [(1, "0", 0), (0.5, "99.9%", 1), (0.5, "100%", 0), (2, "49", 1), (2, "50", 0), (0, "5", 1)],
)
def test_a_drift_that_is_larger_than_allowed_ends_with_1(
    billed_runs: BilledRuns, factor: float, allowed: str, code: int
) -> None:
    billed_runs.run(factor=factor)
    done = billed_runs.shell("bill", "--max-drift", allowed)
    assert (done.returncode, done.stderr) == (code, "")


@pytest.mark.parametrize("allowed", ["", "-1", "nan", "inf", "five", "1e99", "5%%"])
def test_an_allowed_drift_that_is_none_is_wrong_usage(
    billed_runs: BilledRuns, allowed: str
) -> None:
    done = billed_runs.shell("bill", f"--max-drift={allowed}")
    assert done.returncode == 2
    assert "write a percentage, such as 5 or 0.5%." in done.stderr


def test_what_is_pending_is_not_free(billed_runs: BilledRuns) -> None:
    billed_runs.shell.hub.configure(billing_lag_s=60.0)
    billed_runs.run()
    done = billed_runs.shell("bill", "--json")
    assert done.returncode == 0
    found = json.loads(done.stdout)
    assert (found["status"], found["billed_usd"], found["billed_requests"]) == (
        "pending",
        None,
        None,
    )
    assert found["drift"] is None
    assert "1 run pending: not on your own bill yet, which does not mean free" in (
        billed_runs.shell("bill").stdout
    )
    assert billed_runs.shell("bill", "--max-drift", "5").returncode == 3
    billed_runs.shell.hub.advance(61)
    assert told(billed_runs)["status"] == "reported"


@pytest.mark.slow
def test_waiting_ends_when_all_is_booked(billed_runs: BilledRuns) -> None:
    hub = billed_runs.shell.hub
    hub.configure(billing_lag_s=3600.0)
    billed_runs.run()
    waiting = billed_runs.shell.start("bill", "--wait", "50", "--json")
    hub.wait_for(op=OP, timeout=30)
    hub.advance(3601)
    out, _ = waiting.communicate(timeout=50)
    assert json.loads(out)["status"] == "reported"
    assert waiting.returncode == 0


def test_waiting_goes_on_while_requests_are_missing(billed_runs: BilledRuns) -> None:
    hub = billed_runs.shell.hub
    run = billed_runs.run(2)
    half = {"id": f"hfbudget-{run}", "requestCount": 1, "costCents": 0.00001}
    answer = {"currency": "USD", "periods": [{"period": "2026-11", "sessions": [half]}]}
    hub.add_fault(OP, status=200, json=answer)
    found = told(billed_runs, "--wait", "30")
    assert (found["billed_requests"], found["drift"]) == (2, 0.0)
    assert len(hub.log(op=OP, phase="arrived")) == 2


@pytest.mark.slow
def test_waiting_for_a_small_drift_goes_on_while_placeholders_are_booked(
    billed_runs: BilledRuns,
) -> None:
    hub = billed_runs.shell.hub
    hub.configure(billing_lag_s=3600.0, placeholder_usd="0.01")
    billed_runs.run()
    assert told(billed_runs)["billed_usd"] == "0.02"
    waiting = billed_runs.shell.start("bill", "--wait", "50", "--max-drift", "1", "--json")
    hub.wait_for(op=OP, timeout=30, after=hub.last())
    hub.advance(3601)
    out, _ = waiting.communicate(timeout=50)
    assert json.loads(out)["drift"] == 0.0
    assert waiting.returncode == 0


@pytest.mark.slow
def test_waiting_is_over_at_its_end(billed_runs: BilledRuns) -> None:
    billed_runs.shell.hub.configure(billing_lag_s=3600.0)
    billed_runs.run()
    assert told(billed_runs, "--wait", "0.1")["status"] == "pending"


def test_waiting_ends_at_once_without_the_permission(
    billed_runs: BilledRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_nobilling")
    billed_runs.run()
    done = billed_runs.shell("bill", "--wait", "500", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["status"] == "forbidden"
    assert '"Read billing usage"' in done.stderr
    assert "hf_nobilling" not in done.stdout + done.stderr


@pytest.mark.slow
def test_an_organisation_is_asked_for_by_name(billed_runs: BilledRuns) -> None:
    billed_runs.run()
    done = billed_runs.shell("bill", "--org", "acme")
    assert "pending: not on the bill of acme yet" in done.stdout
    asked = billed_runs.shell.hub.log(op=OP, phase="arrived")[-1]["path"]
    assert asked == "/hub/api/organizations/acme/billing/usage-by-inference-session"
    for name in ("", " ", "a/b", ".."):
        assert billed_runs.shell("bill", f"--org={name}").returncode == 2


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        ({"garbage": True}, "the answer is not JSON (text/html"),
        ({"status": 302, "headers": {"location": "https://evil.example/"}}, "to evil.example"),
        ({"status": 200, "json": {"currency": "EUR", "periods": []}}, "the bill is in EUR"),
        ({"status": 200, "json": {"currency": "USD"}}, "the bill has no periods"),
        ({"status": 404}, "answered HTTP 404"),
    ],
)
def test_an_odd_answer_is_one_line(
    billed_runs: BilledRuns, fault: dict[str, Any], line: str
) -> None:
    billed_runs.run()
    billed_runs.shell.hub.add_fault(OP, times=None, **fault)
    done = billed_runs.shell("bill", "--json")
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert (found["status"], found["billed_usd"], found["drift"]) == ("unavailable", None, None)
    assert line in done.stderr
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1


def test_a_run_without_a_session_id_says_why(billed_runs: BilledRuns) -> None:
    billed_runs.run(sent_as="")
    done = billed_runs.shell("bill", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["status"] == "unavailable"
    assert json.loads(done.stdout)["session_id"] is None
    assert "hf_session_header was off" in done.stderr
    assert billed_runs.shell.hub.log(op=OP) == []


@pytest.mark.slow
def test_a_call_without_a_price_leaves_the_drift_unknown(billed_runs: BilledRuns) -> None:
    billed_runs.run(nano_usd=None)
    found = told(billed_runs)
    assert (found["ledger_usd"], found["drift"], found["status"]) == (None, None, "reported")
    assert float(found["billed_usd"]) > 0
    assert billed_runs.shell("bill", "--max-drift", "5").returncode == 3


@pytest.mark.slow
def test_upper_bounds_and_other_sessions_are_named(billed_runs: BilledRuns) -> None:
    billed_runs.run(estimated=True)
    assert "of the ledger is an upper bound" in billed_runs.shell("bill").stdout
    billed_runs.run(3, session_id="of-the-test")
    shown = billed_runs.shell("bill").stdout
    assert "3 calls are missing here, because the tests have set session ids of their own." in shown


def test_what_was_reported_is_kept(billed_runs: BilledRuns) -> None:
    run = billed_runs.run(2)
    usd = told(billed_runs)["billed_usd"]
    file = sqlite3.connect(billed_runs.shell.state_dir / "log.sqlite3")
    kept = file.execute("SELECT run, billed_nano_usd, requests FROM bill").fetchall()
    file.close()
    assert kept == [(run, round(float(usd) * 10**9), 2)]


@pytest.mark.slow
def test_an_empty_log_says_so(billed_runs: BilledRuns) -> None:
    done = billed_runs.shell("bill")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: the usage log has no matching run that called the router")
    assert done.stderr.endswith("To list its runs: hfbudget log --by run\n")
    assert billed_runs.shell.hub.log(op=OP) == []


def test_without_a_token_it_says_what_to_type(
    billed_runs: BilledRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    billed_runs.run()
    done = billed_runs.shell("bill")
    assert done.returncode == 1
    assert done.stderr == "Error: there is no token: set HF_TOKEN, or run: hf auth login\n"


@pytest.mark.parametrize(
    "words",
    [
        ("--last", "0"),
        ("--last", "x"),
        ("--since", "soon"),
        ("--wait", "-1"),
        ("--wait", "nan"),
        ("abc", "--last", "2"),
        ("--month", "--last", "2"),
        ("--month", "--wait", "5"),
        ("--month", "--max-drift", "5"),
        ("",),
    ],
)
def test_wrong_usage_ends_with_2(billed_runs: BilledRuns, words: tuple[str, ...]) -> None:
    billed_runs.run()
    assert billed_runs.shell("bill", *words).returncode == 2
    assert billed_runs.shell.hub.log(op=OP) == []


@pytest.mark.slow
def test_an_address_of_the_hub_that_is_none_is_wrong_usage(billed_runs: BilledRuns) -> None:
    billed_runs.run()
    done = billed_runs.shell("bill", HF_ENDPOINT="huggingface.co")
    assert done.returncode == 2
    assert "HF_ENDPOINT=huggingface.co: write a URL" in done.stderr
    secret = billed_runs.shell("bill", HF_ENDPOINT="ftp://me:secret@hub.example/x")
    assert "HF_ENDPOINT=ftp://hub.example/x: write a URL" in secret.stderr
    gone = billed_runs.shell("bill", HF_ENDPOINT="http://me:secret@127.0.0.1:1")
    assert "http://127.0.0.1:1 did not answer" in gone.stderr
    assert "secret" not in secret.stderr + gone.stderr


# --- a month


def test_a_month_is_what_is_billed_known_and_left(billed_runs: BilledRuns) -> None:
    hub = billed_runs.shell.hub
    billed_runs.run(2, factor=0.5)
    billed_runs.shell("bill")  # its drift is known from here on
    billed_runs.run(2)
    logged = hub.invoice()["calls_nano_usd"]
    billed_runs.run(3, name="elsewhere", sent_as="another-machine")
    sqlite_forget(billed_runs, "elsewhere")
    found = told(billed_runs, "--month")
    inference = {key: value for key, value in found["inference"].items() if "usd" in key}
    nano = {key: round(float(value) * 10**9) for key, value in inference.items()}
    assert nano["billed_usd"] == hub.invoice()["calls_nano_usd"]
    assert nano["log_usd"] + nano["drift_usd"] == logged
    assert nano["unexplained_usd"] == nano["billed_usd"] - logged > 0
    assert (found["inference"]["billed_requests"], found["inference"]["requests"]) == (7, 4)


@pytest.mark.slow
def test_a_month_has_the_endpoints_beside_it(billed_runs: BilledRuns) -> None:
    hub = billed_runs.shell.hub
    hub.add_endpoint("me/llm", state="running", instance_type="nvidia-l4")
    hub.advance(90)
    hub.change_endpoint("me/llm", state="paused")
    found = told(billed_runs, "--month")["endpoints"]
    assert float(found["billed_usd"]) == pytest.approx(hub.invoice()["endpoints_nano_usd"] / 10**9)
    assert (found["log_usd"], found["unexplained_usd"]) == ("0", found["billed_usd"])
    shown = billed_runs.shell("bill", "--month").stdout.splitlines()
    assert shown[0].startswith("billing period from ")
    assert [line.split()[0] for line in shown[2:]] == ["inference", "endpoints"]


def test_a_month_without_the_permission_is_one_line(billed_runs: BilledRuns) -> None:
    done = billed_runs.shell("bill", "--month", "--org", "acme", HF_TOKEN="hf_nobilling")
    assert done.returncode == 1
    assert "org.billing.read" in done.stderr
    assert done.stderr.count("\n") == 1


def sqlite_forget(runs: BilledRuns, run: str) -> None:
    file = sqlite3.connect(runs.shell.state_dir / "log.sqlite3")
    with file:
        file.execute("DELETE FROM entry WHERE run = ?", (run,))
        file.execute("DELETE FROM run WHERE run = ?", (run,))
    file.close()


@pytest.mark.slow
def test_two_commands_at_once_keep_the_same(billed_runs: BilledRuns) -> None:
    billed_runs.run()
    codes: list[int] = []

    def ask() -> None:
        codes.append(billed_runs.shell("bill").returncode)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == [0, 0, 0]


# --- what is kept shows elsewhere


def test_the_log_shows_ledger_and_bill_over_runs(billed_runs: BilledRuns) -> None:
    first, second, third = (billed_runs.run(factor=factor) for factor in (1, 0.5, 2))
    billed_runs.shell("bill", "--last", "3")
    fourth = billed_runs.run()
    rows = {row["run"]: row for row in billed_runs.shell.json("log", "--by", "run")["totals"]}
    drifts = {name: row["drift"] for name, row in rows.items()}
    assert drifts == {first: 0.0, second: 1.0, third: -0.5, fourth: None}
    assert rows[first]["billed_usd"] == rows[first]["usd"]
    assert rows[fourth]["billed_usd"] is None
    names, *lines, _ = billed_runs.shell("log", "--by", "run").stdout.splitlines()
    assert names.split()[-4:] == ["cost", "ledger", "billed", "drift"]
    assert {line.split()[0]: line.rstrip()[-6:].strip() for line in lines}[second] == "+100 %"
    head = billed_runs.shell("log", "--by", "run", "--csv").stdout.splitlines()[0]
    assert head.endswith("usd,ledger_usd,billed_usd,drift")


@pytest.mark.slow
def test_the_log_shows_the_drift_of_a_model_by_runs_with_no_other(billed_runs: BilledRuns) -> None:
    billed_runs.run(factor=0.5)
    billed_runs.run(factor=0.5)
    billed_runs.run(model="openai/gpt-oss-20b:groq")
    mixed = billed_runs.run(name="mixed", factor=0.1)
    file = sqlite3.connect(billed_runs.shell.state_dir / "log.sqlite3")
    with file:  # one of its calls was to another model
        file.execute(
            "UPDATE entry SET model = 'org/x' WHERE rowid = "
            "(SELECT max(rowid) FROM entry WHERE run = ?)",
            (mixed,),
        )
    file.close()
    billed_runs.shell("bill", "--last", "9")
    rows = billed_runs.shell.json("log", "--by", "model")["totals"]
    found = {row["model"]: (row["drift"], row["drift_runs"]) for row in rows}
    assert found["org/x"] == (None, None)
    assert found["openai/gpt-oss-20b"] == (0.0, 1)
    drift, runs = found["emulator/chat"]
    assert (drift, runs) == (pytest.approx(1, abs=1e-3), 2)


def test_without_any_bill_the_log_has_no_such_columns(billed_runs: BilledRuns) -> None:
    billed_runs.run()
    names = billed_runs.shell("log", "--by", "run").stdout.splitlines()[0]
    assert names.split()[-1] == "cost"


@pytest.mark.slow
def test_the_page_and_the_terminal_show_ledger_and_bill(billed_runs: BilledRuns) -> None:
    pytest.importorskip("jinja2")
    files = []
    for day, factor in enumerate((1, 0.5), 1):
        run = billed_runs.run(factor=factor)
        file = billed_runs.shell.directory / f"{run}.json"
        session = {"spent_usd": "0.1", "cap_usd": None, "calls": 2, "refused": 0}
        date = f"2026-11-0{day}T00:00:00+00:00"
        file.write_text(json.dumps({"schema": 1, "run": run, "date": date, "session": session}))
        files.append(str(file))
    before = billed_runs.shell("report", *files).stdout
    assert "billed" not in before
    billed_runs.shell("bill", "--last", "2")
    shown = billed_runs.shell("report", *files).stdout
    assert "by Hugging Face (+100 %)" in shown
    assert "Against the bill" in shown
    billed_runs.shell("report", *files, "--html", "page.html")
    page = (billed_runs.shell.directory / "page.html").read_text()
    assert '<section id="drift"' in page
    assert "+100 %" in page
    assert "emulator/chat" in page


def test_a_log_that_cannot_be_read_costs_a_page_only_its_bills(billed_runs: BilledRuns) -> None:
    billed_runs.shell.state_dir.mkdir()
    (billed_runs.shell.state_dir / "log.sqlite3").write_text("no database" * 99)
    session = {"spent_usd": "0", "cap_usd": None, "calls": 0, "refused": 0}
    file = billed_runs.shell.directory / "report.json"
    file.write_text(json.dumps({"schema": 1, "run": "a", "session": session}))
    done = billed_runs.shell("report", "report.json")
    assert done.returncode == 0
    assert done.stderr.startswith("Warning: no bills are shown: ")


# --- prices that would have been right


def test_suggested_rows_are_a_price_file_that_would_have_been_right(
    billed_runs: BilledRuns,
) -> None:
    billed_runs.shell("prices", "--refresh")
    listed = {"input": 1, "output": 2}
    dear = {"provider": "groq", "pricing": listed, "price": {"input": "1.5", "output": 3}}
    billed_runs.shell.hub.add_model("acme/dear", providers=[{**dear, "context_length": 8192}])
    billed_runs.shell("prices", "--refresh")
    run = billed_runs.run(3, model="acme/dear:groq", factor=1 / 1.5)
    billed_runs.run()
    billed_runs.shell("bill", "--last", "2")
    done = billed_runs.shell("prices", "--suggest")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith('# "acme/dear:groq": was input $1.00, output $2.00 per 1M tokens')
    assert f"run {run}: 3 requests" in lines[1]
    assert lines[1].endswith("+50 %")
    assert lines[2:5] == ['["acme/dear:groq"]', "input = 1.5", "output = 3"]
    assert "is right" in lines[5]
    (billed_runs.shell.directory / "prices.toml").write_text(done.stdout)
    told = billed_runs.shell.json("prices", "acme/dear:groq", "--prices", "prices.toml")
    assert told["said"][0]["price"] == {"input": "1.5", "output": "3"}
    again = billed_runs.shell.json("prices", "--suggest", "--prices", "prices.toml")
    assert {one["name"]: one["right"] for one in again["suggestions"]} == {
        "acme/dear:groq": True,
        "emulator/chat:groq": True,
    }


@pytest.mark.slow
def test_suggestions_can_be_for_one_model(billed_runs: BilledRuns) -> None:
    billed_runs.shell("prices", "--refresh")
    billed_runs.run()
    billed_runs.shell("bill")
    assert "is right" in billed_runs.shell("prices", "--suggest", "emulator/chat").stdout
    nothing = billed_runs.shell("prices", "--suggest", "org/other")
    assert (nothing.returncode, nothing.stdout) == (
        0,
        "# No run with only one model has a complete bill yet. Read bills: hfbudget bill\n",
    )
    assert billed_runs.shell("prices", "--suggest", "--tokens", "1/1").returncode == 2


@pytest.mark.slow
def test_runs_whose_bill_is_not_whole_say_nothing_of_prices(billed_runs: BilledRuns) -> None:
    hub = billed_runs.shell.hub
    billed_runs.run(estimated=True)
    run = billed_runs.run(2)
    billed_runs.shell("bill", "--last", "2")
    half = {"id": f"hfbudget-{run}", "requestCount": 1, "costCents": 0.00001}
    answer = {"currency": "USD", "periods": [{"period": "2026-11", "sessions": [half]}]}
    hub.add_fault(OP, status=200, json=answer)
    billed_runs.shell("bill")
    assert billed_runs.shell.json("prices", "--suggest")["suggestions"] == []
