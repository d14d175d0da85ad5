"""`hfbudget demo`: shows caps and pauses against the emulator in ten seconds, at $0."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pytest_hfbudget.money import exact, parse_usd

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from pytest_hfbudget.emulator import Emulator

SUITE = Path(__file__).parent / "demo_suite"
ENDPOINT = "demo/llm"
SESSION_CAP = "0.05"
START_S = 60.0
PAUSE_S = 10.0


@click.command("demo")
def command() -> None:
    """Show the plugin at work in ten seconds, at $0.

    It runs a capped suite against a local emulator, puts the ledger beside the emulator's invoice,
    and kills a run to show that its endpoint is paused.

    Exit codes: 0 everything was as promised; 1 something was not.
    """
    from rich.console import Console

    try:
        kept = Demo.run(Console())
    except ImportError as error:
        raise click.ClickException(str(error)) from None
    if not kept:
        sys.exit(1)


@dataclass
class Demo:
    """Runs everything against one emulator, and checks what it shows.

    Attributes:
        report: the JSON report of the first run; it stays after the demo.
        problems: what was not as promised; empty after a good run.
    """

    console: Console
    emulator: Emulator
    directory: Path
    report: Path
    problems: list[str]

    @classmethod
    def run(cls, console: Console) -> bool:
        """Run the whole demo; returns whether everything was as promised.

        Raises:
            ImportError: what the emulator needs is not installed.
        """
        from pytest_hfbudget.emulator import Emulator

        config = {"endpoints": [{"namespace": "demo", "name": "llm", "initializing_s": 1.5}]}
        # The reaper of the run that is killed may still write while the folder is removed.
        folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        with Emulator(config=config) as emulator, folder as directory:
            report = Path(tempfile.mkdtemp(prefix="hfbudget-demo-")) / "report.json"
            demo = cls(console, emulator, Path(directory), report, [])
            demo.capped_run()
            demo.killed_run()
            demo.verdict()
            console.print(f"\nLook at its report: hfbudget report {report} --html report.html")
            return not demo.problems

    # --- three acts

    def capped_run(self) -> None:
        """Run a suite under a session budget; one of its tests asks for more than its cap."""
        self._title("1. A suite under a cap, with an endpoint that is resumed and paused")
        report = self.report
        command = self._pytest("test_paid_inference.py", "--hf-report", str(report))
        self.console.print(
            f"$ pytest --hf-session-budget {SESSION_CAP} test_paid_inference.py", style="bold"
        )
        self.console.file.flush()
        subprocess.run(command, env=self._environment(), cwd=SUITE, check=False)
        ran = json.loads(report.read_text()) if report.exists() else {}
        self._expect_outcomes(ran)
        self._compare(ran)

    def killed_run(self) -> None:
        """Kill a run with SIGKILL while its endpoint is up."""
        self._title("2. kill -9 in the middle of a test")
        client = self.emulator.client
        after = client.last()
        client.add_fault("chat", endpoint=ENDPOINT, hang=START_S)
        process = subprocess.Popen(
            self._pytest("test_paid_inference.py::test_a_dedicated_endpoint"),
            env=self._environment(),
            cwd=SUITE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        client.wait_for(after=after, op="chat", timeout=START_S)
        self.console.print(f"the test waits for an answer, {ENDPOINT} is {self._state()}")
        killed_at, after = time.time(), client.last()
        process.kill()
        process.wait()
        self.console.print(f"kill -9 {process.pid}: pytest is gone (exit {process.returncode})")
        self._see_the_pause(after, killed_at)

    def verdict(self) -> None:
        """Print what was not as promised, or that everything was."""
        self._title("As promised" if not self.problems else "Not as promised")
        for problem in self.problems:
            self.console.print(f"  {problem}", style="red")
        if not self.problems:
            self.console.print(
                "  Calls above a cap were not sent, the ledger equals the bill, and the "
                "endpoint was paused both times.",
                style="green",
            )

    # --- how

    def _pytest(self, file: str, *options: str) -> list[str]:
        budget = ("--hf-session-budget", SESSION_CAP)
        quiet = ("-p", "no:cacheprovider", "--no-header", "--color", self._colour())
        return [sys.executable, "-m", "pytest", *quiet, *budget, *options, file]

    def _colour(self) -> str:
        return "yes" if self.console.is_terminal else "no"

    def _environment(self) -> dict[str, str]:
        # Leave out the user's own settings, which are for other suites.
        mine = ("HFBUDGET_", "PYTEST_")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(mine)}
        state = str(self.directory / "state")
        return {
            **kept,
            "HFBUDGET_EMULATOR": self.emulator.url,
            "HFBUDGET_STATE_DIR": state,
            "HFBUDGET_CACHE_DIR": state,
        }

    def _expect_outcomes(self, report: dict[str, Any]) -> None:
        wanted = {"test_that_asks_for_too_much": "failed"}
        seen = {test["id"].rpartition("::")[2]: test["outcome"] for test in report.get("tests", ())}
        if len(seen) != 4:  # noqa: PLR2004 - the tests of the suite
            self.problems.append(f"4 tests should have called, {len(seen)} did")
        for name, outcome in seen.items():
            if outcome != wanted.get(name, "passed"):
                self.problems.append(f"{name} {outcome}")

    def _compare(self, report: dict[str, Any]) -> None:
        from rich.table import Table

        invoice = self.emulator.client.invoice()
        calls = [parse_usd(call["usd"]) for call in report.get("calls", ()) if call["usd"]]
        uptime = [parse_usd(endpoint["usd"]) for endpoint in report.get("endpoints", ())]
        table = Table("", "ledger", "invoice")
        self._row(table, "calls", sum(calls), invoice["calls_nano_usd"])
        self._row(table, "uptime", sum(uptime), invoice["endpoints_nano_usd"])
        self._row(table, "total", sum(calls) + sum(uptime), invoice["total_nano_usd"])
        self.console.print("\nThe ledger beside the emulator's invoice:")
        self.console.print(table)

    def _row(self, table: Table, name: str, ours: int, theirs: int) -> None:
        ledger, bill = exact(ours), exact(theirs)  # they are to be equal to the last digit
        table.add_row(name, ledger, bill, style="" if ours == theirs else "red")
        if ours != theirs:
            self.problems.append(f"{name}: the ledger says {ledger}, the bill {bill}")

    def _see_the_pause(self, after: int, killed_at: float) -> None:
        client = self.emulator.client
        try:
            asked = client.wait_for(after=after, op="pause", timeout=PAUSE_S)
            client.wait_for(after=after, kind="state", state="paused", timeout=PAUSE_S)
        except TimeoutError as error:
            self.problems.append(f"{ENDPOINT} was not paused after kill -9: {error}")
            return
        milliseconds = (asked["time"] - killed_at) * 1000
        self.console.print(
            f"{milliseconds:.0f} ms later the pause was on the wire; {ENDPOINT} is {self._state()}",
            style="green",
        )

    def _state(self) -> str:
        endpoints = self.emulator.client.invoice()["endpoints"]
        return str(endpoints[0]["state"]) if endpoints else "unknown"

    def _title(self, text: str) -> None:
        self.console.print()
        self.console.rule(text, align="left")
