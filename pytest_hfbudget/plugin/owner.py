"""The process that owns the ledger, the endpoints and the report of a run."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_hfbudget.errors import HFBudgetError
from pytest_hfbudget.plugin import options
from pytest_hfbudget.plugin.announcer import Announcer
from pytest_hfbudget.plugin.exhaustion import NOT_RUN
from pytest_hfbudget.plugin.voice import say
from pytest_hfbudget.settings import Settings, full_name

if TYPE_CHECKING:
    from pytest_hfbudget.ledger import Ledger, Scope
    from pytest_hfbudget.metering.runtime import Runtime
    from pytest_hfbudget.metering.threshold import Once
    from pytest_hfbudget.plugin.desk import Desk
    from pytest_hfbudget.plugin.fleet import Fleet
    from pytest_hfbudget.plugin.recording import Recording
    from pytest_hfbudget.plugin.rehearsal import Rehearsal
    from pytest_hfbudget.pricing import Catalogue
    from pytest_hfbudget.reporting import Report


class Owner:
    """A run in one process, or the controller of one with workers."""

    def __init__(self, config: pytest.Config, settings: Settings) -> None:
        self.config, self.settings = config, settings
        self.run_id, self._started = uuid.uuid4().hex[:12], time.time()
        self.leased: dict[str, str] = {}
        self._lock = threading.RLock()
        self._ledger: Ledger | None = None
        self._fleet: Fleet | None = None
        self._desk: Desk | None = None
        self._rehearsal: Rehearsal | None = None
        self._prices_ready = self._foreseen = False
        self._read: Catalogue | None = None
        self._blamed: list[str] = []
        self._once: Once | None = None
        self._used_up = False
        self._announcer = Announcer(config)
        self._done = False
        self._why_red = ""
        self._written: Path | None = None
        self._verified = True

    # --- before the tests

    def open(self) -> None:
        if self.settings.emulator:
            from pytest_hfbudget.plugin.rehearsal import Rehearsal

            self._rehearsal = Rehearsal.start(self.settings.emulator)
            self.settings = self._rehearsal.settings(self.settings)
        if self.settings.capped or self.settings.prices:
            from pytest_hfbudget.plugin import prices

            prices.check(self.config, self.settings)
        self.standing()  # a store that can't be used ends the run before anything is collected

    def standing(self) -> tuple[str, ...]:
        if not self.settings.capped_over_runs:
            return ()
        from pytest_hfbudget.plugin import history

        return history.standing(self.ledger, self.settings)

    def make_runtime(self) -> Runtime:
        from pytest_hfbudget.plugin.assembly import assemble

        return assemble(self.config, self.settings, self.ledger, self.leased, self._catalogue)

    @property
    def ledger(self) -> Ledger:
        """The ledger of the run, made when it is first needed."""
        with self._lock:
            if self._ledger is None:
                from pytest_hfbudget.plugin import history
                from pytest_hfbudget.plugin.assembly import session_scope

                self._ledger = history.ledger_of(self.config, self.settings, self.run_id)
                self._ledger.open(session_scope(self.settings))
            return self._ledger

    def declare(self, names: tuple[str, ...], *, paid: bool) -> None:
        given = (full_name(name, self.settings.namespace) for name in self.settings.endpoints)
        needed = tuple(dict.fromkeys((*given, *names)))
        with self._lock:  # several workers declare at once
            if needed:
                self.fleet.check(needed)
            if paid:
                self._prepare_prices()

    def _prepare_prices(self) -> None:
        if not self._prices_ready:
            from pytest_hfbudget.plugin import prices

            prices.check(self.config, self.settings)
            self._read = prices.refresh(self.config, self.settings, needed=True)
            self._prices_ready = True

    def foresee(self) -> None:
        with self._lock:
            if not self._foreseen and self._read is None:
                from pytest_hfbudget.plugin import prices

                self._foreseen = True
                self._read = prices.refresh(self.config, self.settings, needed=False)

    def _catalogue(self) -> Catalogue:
        from pytest_hfbudget.pricing.catalogue import kept_catalogue

        return self._read or kept_catalogue(self.settings.router)

    def problem(self, error: HFBudgetError) -> None:
        raise error

    def planned(self) -> None:
        if self._desk is not None and self._desk.problem is not None:
            raise self._desk.problem

    def begin(self) -> None:
        names = [full_name(name, self.settings.namespace) for name in self.settings.endpoints]
        if names and self._desk is not None:
            self.fleet.check(tuple(names))  # workers have that done too, but later than now
        for name in names:
            self.ensure(name)

    # --- endpoints

    @property
    def fleet(self) -> Fleet:
        """The endpoints of the run, known since the first one was declared."""
        with self._lock:
            if self._fleet is None:
                from pytest_hfbudget.plugin.fleet import Fleet

                self._fleet = Fleet(
                    self.config, self.settings, self.run_id, self.ledger, self._rehearsal
                )
                if self._desk is not None:
                    self._fleet.tend_alone()  # tests end in the workers, not here
            return self._fleet

    def ensure(self, name: str, *, keep_running: bool = False) -> dict[str, Any]:
        endpoint = self.fleet.ensure(name, keep_running=keep_running)
        if endpoint.url:
            self.leased[endpoint.url] = name
        return dict(endpoint.raw)

    def revive(self, name: str) -> bool:
        return self._fleet is not None and self._fleet.revive(name)

    def meet(self) -> None:
        """It has brought them up itself."""

    def begin_use(self, test: str, name: str, scopes: tuple[Scope, ...], worker: str = "") -> None:
        self.fleet.begin_use(test, name, scopes, worker)

    def end_use(self, test: str, worker: str | None = None) -> None:
        if self._fleet is not None:
            self._fleet.end_use(test, worker)

    def share(self, test: str) -> int:
        return self._fleet.share(test) if self._fleet is not None else 0

    def paused(self, name: str) -> str | None:
        error = self._fleet.paused(name) if self._fleet is not None else None
        return str(error) if error else None

    def blame(self, refusals: tuple[str, ...]) -> None:
        self._blamed += refusals

    def warn(self, text: str) -> None:
        say(self.config, text, yellow=True)

    def first(self, key: str) -> bool:
        with self._lock:
            if self._once is None:
                from pytest_hfbudget.metering.threshold import Once

                self._once = Once()
        return self._once(key)

    def use_up(self) -> None:
        self._used_up = True

    def used_up(self) -> bool:
        return self._used_up

    def announce(self) -> None:
        if (ledger := self._ledger) is not None:
            tell = self._announcer.tell
            tell("pytest_hfbudget_charge", "charge", ledger.charges)
            tell("pytest_hfbudget_refusal", "refusal", ledger.refusals)
        if (fleet := self._fleet) is not None:
            self._announcer.tell("pytest_hfbudget_endpoint", "event", fleet.log.all)

    def between(self) -> None:
        if self._fleet is not None:
            self._fleet.tend()

    def ask_pause(self) -> None:
        if self._fleet is not None:
            self._fleet.ask_pause()

    # --- after the tests

    def finish(self, outcomes: Mapping[str, str]) -> bool:
        if not self._done:
            try:
                if self._fleet is not None:
                    self._verified = self._fleet.finish()
                self._done = True
            finally:
                self._why_red = self._reason(outcomes)
                self._write_report(outcomes)
                self._add_to_log(outcomes)
        return self._verified and not self._blamed

    def _reason(self, outcomes: Mapping[str, str]) -> str:
        """Why the run is red though no test has failed, where pytest's own last line is silent."""
        told = set(outcomes.values())
        if "failed" in told or "interrupted" in told:
            return ""
        if NOT_RUN in told:
            from pytest_hfbudget.reporting.terminal import not_run

            return not_run(self.report(outcomes))
        calls = "1 call was" if len(self._blamed) == 1 else f"{len(self._blamed)} calls were"
        return f"{calls} refused outside of every test." if self._blamed else ""

    @property
    def quiet(self) -> bool:
        """Whether nothing has happened that could cost anything."""
        return self._ledger is None and self._fleet is None

    def uneventful(self, outcomes: Mapping[str, str]) -> bool:
        """Whether there is nothing to tell of the run; known without making a report."""
        if self._fleet is not None or NOT_RUN in outcomes.values():
            return False
        ledger = self._ledger
        return ledger is None or not (ledger.charges() or ledger.refusals() or ledger.unmetered())

    def report(self, outcomes: Mapping[str, str]) -> Report:
        """The report as it stands now."""
        from pytest_hfbudget.reporting import Report

        lines = self._fleet.lines() if self._fleet is not None else ()
        report = Report.of(self.ledger, self.settings.session_cap, outcomes, lines)
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        return replace(
            report,
            run=self.run_id,
            date=now,
            rehearsal=self.settings.emulator is not None,
            over_runs=self.settings.capped_over_runs,
        )

    def _write_report(self, outcomes: Mapping[str, str]) -> None:
        if self.settings.report is None or options.only_look(self.config, self.settings):
            return  # a look spends nothing, and what the last run has spent is worth keeping
        from pytest_hfbudget.plugin import paperwork

        if paperwork.write(self.config, self.report(outcomes), self.settings.report):
            self._written = self.settings.report

    def _add_to_log(self, outcomes: Mapping[str, str]) -> None:
        if self._ledger is not None and not self.uneventful(outcomes):
            from pytest_hfbudget.plugin import history

            report = self.report(outcomes)
            history.add_to_log(self.config, self.settings, self.run_id, self._started, report)

    def record(self, recording: Recording, session: pytest.Session) -> None:
        if self.settings.store_costs:
            events = self._fleet.log.all() if self._fleet is not None else ()
            recording.store(session, self.ledger, events)

    def summarise(self, terminal: Any, outcomes: Mapping[str, str]) -> None:
        # A daily budget of which nothing was spent says so, as one of the session does.
        capped = self.settings.session_cap is not None or self.settings.capped_over_runs
        if self.quiet or (self.uneventful(outcomes) and not capped):
            return
        if options.only_look(self.config, self.settings) and self.uneventful(outcomes):
            return  # a look sends nothing, so there is nothing to sum up
        report = self.report(outcomes)
        from pytest_hfbudget.plugin import paperwork

        paperwork.show(terminal, report, self._blamed, self.standing(), self._written)

    def last_words(self) -> None:
        if self._done and (why := self._why_red):
            say(self.config, f"hfbudget: the run is red: {why}", red=True, bold=True)
        if self._done and self._fleet is not None:
            for line in self._fleet.lines():
                if not line.in_order:
                    say(self.config, f"{line.name}: {line.to_do}", red=True, bold=True)

    # --- workers

    def serve(self) -> dict[str, Any]:
        if self._desk is None:
            from pytest_hfbudget.plugin.desk import Desk

            self._desk = Desk(self)
        return {
            "socket": self._desk.path,
            "router": self.settings.router,
            "endpoints_api": self.settings.endpoints_api,
            "hub": self.settings.hub or "",
            "emulator": self.settings.emulator or "",
        }

    def catalogue_as_read(self) -> Any:
        """What the catalogue was made of, for a worker that makes its own of it."""
        return self._catalogue().as_read()

    def close(self) -> None:
        if self._desk is not None:
            self._desk.close()
            self._desk = None
        if self._ledger is not None:
            from pytest_hfbudget.plugin import history

            history.close(self.config, self.settings, self._ledger)
        if self._rehearsal is not None:
            self._rehearsal.stop()
            self._rehearsal = None


def with_addresses(settings: Settings, given: Mapping[str, Any]) -> Settings:
    """Settings of a worker, with the addresses that its controller uses."""
    return replace(
        settings,
        router=given["router"],
        endpoints_api=given["endpoints_api"],
        hub=given["hub"] or None,
        emulator=given["emulator"] or None,
    )
