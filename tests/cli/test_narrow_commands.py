"""The tables of the commands on a terminal of eighty columns."""

from __future__ import annotations

import json
import re
import time

import pytest
from command_line import Shell

from pytest_hfbudget.history.usage_log import FILE, LoggedRun, UsageLog, entries
from pytest_hfbudget.ledger import Charge, Refusal
from pytest_hfbudget.reporting import EndpointLine, Report, json_report
from pytest_hfbudget.reporting import TestLine as LineOfTest

ENDPOINT = "acme-research/llama-3-70b-instruct-nightly"
TEST = (
    "tests/test_answers_of_the_assistant.py::TestAnswers::test_that_asks_a_question_with_a_name[x]"
)
NARROW, VERY_NARROW = 80, 32
MODEL = "meta-llama/Llama-3.1-8B-Instruct"


@pytest.fixture
def shell(hfbudget: Shell, monkeypatch: pytest.MonkeyPatch) -> Shell:
    """One of everything, with the names that people give."""
    monkeypatch.setenv("HF_ENDPOINT", f"{hfbudget.hub.url}/hub")
    hfbudget.hub.add_endpoint(ENDPOINT, state="running", instance_type="nvidia-l4")
    hfbudget.hub.add_endpoint("acme-research/idle", state="paused", instance_type="nvidia-l4")
    now = time.time()
    price = "router catalogue of 2026-11-28: meta-llama/Llama-3.1-8B-Instruct:together"
    asked = (TEST, "conversational", MODEL, "together", 12, 30, 1_500)
    call = Charge(*asked, price, "200", False, 0.25, session_id="hfbudget-0123456789ab")
    why = f"{TEST}: {MODEL} may cost up to $0.01, but only $0.00 of $0.00 is left ($0.00 spent)."
    report = Report(
        spent=13_345_678,
        cap=10**9,
        calls=1,
        refused=1,
        tests=(LineOfTest(TEST, "failed", 1_500, 12_500_000, 1, 1),),
        charges=(call,),
        refusals=(Refusal(TEST, TEST, MODEL, why),),
        endpoints=(EndpointLine(ENDPOINT, "paused", 13_333_334, 1, True, True, True),),
        run="0123456789ab",
        session_id="hfbudget-0123456789ab",
    )
    run = LoggedRun("0123456789ab", "/src/project", now - 60, now, "hfbudget-0123456789ab")
    UsageLog(hfbudget.state_dir / FILE).write(run, entries(report, run), keep_days=90)
    json_report.write(report, hfbudget.directory / "report.json")
    (hfbudget.directory / "two.json").write_text(
        json.dumps({**json.loads((hfbudget.directory / "report.json").read_text()), "run": "two"})
    )
    (hfbudget.directory / "prices.toml").write_text(
        f'["{MODEL}:together"]\ninput = 0.88\noutput = 0.88\n'
    )
    return hfbudget


def words(text: str) -> set[str]:
    """Each word, and of a name its parts: it may be broken behind ``::``."""
    text = re.sub(r"\b\d\d:\d\d(:\d\d)?\b", "", text)  # the clock goes on between two commands
    return {part.strip(";") for word in text.split() for part in re.split(r"(?<=::)", word)} | {""}


@pytest.mark.parametrize(
    "command",
    [
        ("log",),
        ("log", "--by", "test"),
        ("log", "--by", "model"),
        ("prices", "--prices", "prices.toml"),
        ("prices", MODEL, "--prices", "prices.toml", "--tokens", "1000/500"),
        ("bill",),
        ("bill", "--month"),
        ("status", "acme-research"),
        ("forecast", "--endpoint", ENDPOINT, "--endpoint", "acme-research/idle"),
        ("report", "report.json"),
        ("report", "report.json", "two.json"),
    ],
    ids=" ".join,
)
def test_no_table_breaks_a_word(shell: Shell, command: tuple[str, ...]) -> None:
    wide, narrow = (shell(*command, COLUMNS=columns) for columns in ("1000", str(NARROW)))
    assert (wide.returncode, narrow.returncode) == (0, 0), narrow.stderr
    assert max(map(len, narrow.stdout.splitlines())) <= NARROW
    assert words(narrow.stdout) <= words(wide.stdout)
    assert "…" not in narrow.stdout
    assert not re.search(r"::[^\S\n]+\S", narrow.stdout)  # the parts of a name stay together


def test_a_row_that_does_not_fit_is_a_paragraph_with_the_names_of_its_columns(shell: Shell) -> None:
    said = shell("status", "acme-research", COLUMNS=str(NARROW)).stdout
    assert re.search(rf"^{ENDPOINT}\n    state running; \$/h \$0\.80; since ", said, re.MULTILINE)
    wide = shell("status", "acme-research", COLUMNS="120").stdout
    assert re.search(rf"^{ENDPOINT}  running  \$0\.80 ", wide, re.MULTILINE)


def test_a_word_longer_than_the_terminal_loses_its_beginning(shell: Shell) -> None:
    said = shell("log", "--by", "test", COLUMNS=str(VERY_NARROW)).stdout
    assert max(map(len, said.splitlines())) <= VERY_NARROW
    assert re.search(r"^…\S+_a_name\[x\]$", said, re.MULTILINE)
