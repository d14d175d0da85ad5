"""Runs in the usage log whose calls were really made, at the emulator's router."""

from __future__ import annotations

import http.client
import json
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import pytest
from command_line import Shell

from pytest_hfbudget.history.usage_log import FILE, LoggedRun, UsageLog, entries
from pytest_hfbudget.ledger import Charge
from pytest_hfbudget.reporting import Report


@dataclass
class BilledRuns:
    """Makes runs, and types commands."""

    shell: Shell
    made: int = 0

    def run(
        self,
        calls: int = 2,
        *,
        name: str = "",
        model: str = "emulator/chat:groq",
        ago_s: float = 0,
        factor: float = 1,
        **more: Any,
    ) -> str:
        """A run of some calls, each in the log at what it costs, times a factor; its id."""
        self.made += 1
        run = name or f"run{self.made:09}"
        session = more.pop("sent_as", f"hfbudget-{run}")
        before, now = self.billed, time.time() - ago_s
        for number in range(calls):
            self._call(model, session, f"{'very ' * number}short")
        rows = self.shell.hub.invoice()["calls"][before:]
        charges = [_charge(row, session, factor)._replace(**more) for row in rows]
        report = Report(0, None, len(charges), 0, charges=tuple(charges))
        logged = LoggedRun(run, "/src/project", now - 60, now, f"hfbudget-{run}" * bool(session))
        UsageLog(self.shell.state_dir / FILE).write(logged, entries(report, logged), keep_days=90)
        return run

    @property
    def billed(self) -> int:
        """Calls on the invoice."""
        return len(self.shell.hub.invoice()["calls"])

    def _call(self, model: str, session: str, text: str) -> None:
        where = urlsplit(self.shell.hub.url)
        connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=10)
        body = {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 20}
        headers = {
            "Authorization": "Bearer hf_x",
            **({"X-HF-Session-id": session} if session else {}),
        }
        connection.request("POST", "/router/v1/chat/completions", json.dumps(body), headers)
        assert connection.getresponse().status == 200
        connection.close()


def _charge(row: dict[str, Any], session: str, factor: float) -> Charge:
    return Charge(
        test="test_a.py::test_a",
        task="conversational",
        model=row["model"],
        provider=row["provider"],
        input_tokens=row["prompt_tokens"],
        output_tokens=row["completion_tokens"],
        nano_usd=round(row["nano_usd"] * factor),
        price_source="prices.toml",
        status="200",
        estimated=False,
        seconds=0.1,
        session_id=session,
    )


@pytest.fixture
def billed_runs(hfbudget: Shell, monkeypatch: pytest.MonkeyPatch) -> BilledRuns:
    """Runs and commands in front of one emulator, which is the Hub as well."""
    monkeypatch.setenv("HF_ENDPOINT", f"{hfbudget.hub.url}/hub")
    monkeypatch.setenv("HFBUDGET_ROUTER", f"{hfbudget.hub.url}/router")
    return BilledRuns(hfbudget)
