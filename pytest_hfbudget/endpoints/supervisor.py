"""Starts the reaper of a run, and replaces it once if it is killed."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from pytest_hfbudget.endpoints import Endpoint, process
from pytest_hfbudget.endpoints.api import ControlPlane
from pytest_hfbudget.endpoints.journal import Journal, Record
from pytest_hfbudget.endpoints.lease_end import LeaseEnd, Pauser, journal_record
from pytest_hfbudget.endpoints.lease_store import EndpointLease
from pytest_hfbudget.endpoints.lifecycle_types import EndpointSettings
from pytest_hfbudget.endpoints.reaper_client import ReaperClient
from pytest_hfbudget.endpoints.reaper_messages import (
    ASKED,
    DEADLINE,
    REAPER_LOST,
    Arm,
    BeginLease,
    PauseReceipt,
)
from pytest_hfbudget.endpoints.reaper_processes import SpawnedProcess
from pytest_hfbudget.endpoints.transport import Route
from pytest_hfbudget.errors import EndpointError
from pytest_hfbudget.locks import Clock

# Messages: why endpoints were paused before the end of their run.
EARLY = {
    DEADLINE: "the uptime that this run may have is used up, so its endpoints were paused.",
    REAPER_LOST: "the process that pauses endpoints was killed again, so endpoints were paused.",
}

_KILLED = "the process that pauses endpoints was killed"


class Supervisor:
    """Has a reaper pause endpoints. If there can't be a reaper, this process pauses them."""

    def __init__(
        self,
        settings: EndpointSettings,
        plane: ControlPlane,
        journal: Journal,
        *,
        clock: Clock,
        spawn: SpawnedProcess,
    ) -> None:
        self._settings, self._plane, self._journal = settings, plane, journal
        self._clock, self._spawn = clock, spawn
        self._lock = threading.RLock()
        self._terms: dict[str, BeginLease] = {}
        self._resumes_pending: set[str] = set()
        self._paused_here: dict[str, PauseReceipt] = {}
        self._ended: dict[str, PauseReceipt | None] = {}  # None until it is verified
        self._starts = self._noticed = 0
        self._until: float | None = None
        self.warnings: tuple[str, ...] = ()
        self._client = self._start()

    @property
    def reaper_pid(self) -> int | None:
        """The process id of the current reaper."""
        return self._client.pid

    def begin_lease(self, terms: BeginLease) -> None:
        """Have the reaper pause an endpoint at the end; call this before the resume.

        A later call for the same endpoint changes the settings of its pause.

        Raises:
            EndpointError: the reaper can't guarantee the pause.
        """
        self.tend()
        with self._lock:
            self._terms[terms.endpoint] = terms
            self._ended.pop(terms.endpoint, None)
            change = self._resumes_pending.add if terms.resuming else self._resumes_pending.discard
            change(terms.endpoint)
            client = self._client
        settings = self._settings
        client.begin_lease(terms, timeout_s=settings.waits.arm_timeout_s + settings.timings.try_s)

    def end_lease(self, name: str) -> None:
        """Have an endpoint paused now, without waiting, because the run no longer needs it."""
        with self._lock:
            self._ended[name] = None
            self._client.end_lease(name)

    def resuming(self, name: str) -> None:
        """Tell the reaper that a resume is about to be sent, and may take effect late.

        Raises:
            EndpointError: see `begin_lease`.
        """
        self.begin_lease(replace(self._terms[name], resuming=True))

    def resume_over(self, name: str) -> None:
        """Tell the reaper that the resume was answered, or will not be sent."""
        with self._lock:
            if name in self._resumes_pending:
                self._resumes_pending.discard(name)
                self._client.resume_over(name)

    def set_deadline(self, at_mono: float | None) -> None:
        """Have all paused at this time of the steady clock; None: only at the end."""
        with self._lock:
            if at_mono != self._until:
                self._until = at_mono
                self._client.set_deadline(at_mono)

    def early_reason(self) -> str | None:
        """Why the endpoints were paused without a request of this process: a key of `EARLY`.

        None if they were not.
        """
        if self._paused_here:
            return REAPER_LOST
        return DEADLINE if self._client.reason == DEADLINE else None

    def write(
        self, kind: str, found: Endpoint, *, scaling: Mapping[str, Any] | None = None
    ) -> None:
        """Write a line about an endpoint to the journal; call this before the step it announces.

        Raises:
            EndpointError: the line can't be written.
        """
        self._journal.write(
            Record(
                kind=kind,
                run=self._settings.run,
                endpoint=found.full_name,
                api=self._settings.api,
                at=self._clock.time(),
                owner_pid=os.getpid(),
                owner_start=process.start_time(os.getpid()),
                state=found.state,
                scaling=scaling,
            )
        )

    def request_pause(self) -> None:
        """Have all paused now, without waiting."""
        self._client.request_pause()

    def tend(self) -> None:
        """Replace a lost reaper once; if it is lost again, pause everything in this process."""
        with self._lock:
            self._client.end_if_stopped()
            self._notice_successions()
            self._notice_ends()
            if not (self._terms or self._ended) and self._starts == 1 and self._client.lost:
                self._client = self._start()  # the lost one had no endpoint yet
            elif self._client.lost and not self._paused_here:
                self._replace()

    def pause(self, timeout_s: float) -> dict[str, PauseReceipt]:
        """Have all paused and wait; returns the receipts by name that came in ``timeout_s``."""
        with self._lock:  # another thread may be replacing the reaper
            client = self._client
        receipts = {receipt.endpoint: receipt for receipt in client.pause(timeout_s)}
        self._notice_ends()
        receipts.update({**self._paused_early(), **self._paused_here})
        self._notice_successions()
        if self._client.lost:  # it is too late for another reaper, so pause here
            missing = [name for name in self._terms if not _in_order(receipts.get(name))]
            if missing:
                self._warn(f"{_KILLED}, so pytest-hfbudget pauses them itself")
            receipts.update(self._pause_here(missing, timeout_s, ASKED))
        return receipts

    def receipts(self) -> dict[str, PauseReceipt]:
        """The receipts so far, by name."""
        self._notice_ends()
        known = {receipt.endpoint: receipt for receipt in self._client.receipts()}
        return {**known, **self._paused_early(), **self._paused_here}

    def wait_until_paused(self, name: str, stopping: Callable[[], str]) -> PauseReceipt:
        """Wait until the pause is verified that `end_lease` has asked for.

        Raises:
            EndpointError: that takes too long, or ``stopping`` returns why not to wait.
        """
        ends = self._clock.monotonic() + self._settings.waits.retry_s
        while True:
            told = self.receipts().get(name)
            if told is not None and told.in_order:
                return told
            why = stopping()
            if why or self._clock.monotonic() > ends:
                raise EndpointError(f"{name} is not resumed: {why or self.late_error(name)}")
            self._clock.sleep(self._settings.timings.verify_poll_s / 4)

    def late_error(self, name: str) -> str:
        """The error for a pause that was not verified in time."""
        return (
            f"{name}: its pause was not verified within "
            f"{self._settings.waits.verify_deadline_s:g} s. Process {self.reaper_pid} goes on "
            f"trying; look with `hfbudget status {name.partition('/')[0]}`, or pause it: "
            f"`hfbudget pause {name}`"
        )

    def close(self) -> None:
        """Close the channel; the reaper finishes its work without it."""
        self._client.close()

    def _start(self) -> ReaperClient:
        self._starts += 1
        self._noticed = 0
        log = self._journal.path.with_suffix(f".{self._starts}.log")
        route = Route.find(self._settings.api)
        arm = Arm(
            token=self._settings.token,
            api=self._settings.api,
            client_pid=os.getpid(),
            client_start=process.start_time(os.getpid()),
            run=self._settings.run,
            journal=str(self._journal.path.absolute()),
            lease_dir=str(self._settings.lease_dir.absolute()),
            timings=self._settings.timings,
            ca_file=route.ca_file,
            proxy=route.proxy,
            shared=self._settings.shared,
        )
        timeout_s = self._settings.waits.arm_timeout_s
        return ReaperClient.start(
            arm, log=log, timeout_s=timeout_s, spawn=self._spawn, clock=self._clock
        )

    def _notice_successions(self) -> None:
        """Warn if a standby has stepped in for a killed reaper."""
        if self._client.successions > self._noticed:
            self._noticed = self._client.successions
            self._warn(f"{_KILLED}; its standby has stepped in")

    def _notice_ends(self) -> None:
        """Forget endpoints whose pause before the end of the run is verified."""
        with self._lock:
            for receipt in self._client.receipts() if None in self._ended.values() else ():
                name = receipt.endpoint
                if receipt.in_order and self._ended.get(name, receipt) is None:
                    self._ended[name] = receipt
                    self._resumes_pending.discard(name)
                    self._terms.pop(name, None)

    def _paused_early(self) -> dict[str, PauseReceipt]:
        return {name: told for name, told in list(self._ended.items()) if told is not None}

    def _replace(self) -> None:
        try:
            self._hand_over()
            self._warn(f"{_KILLED}; pytest-hfbudget has started another one")
        except EndpointError as error:
            self._warn(f"{_KILLED}, so endpoints were paused before the run's end: {error}")
            timeout_s = self._settings.waits.retry_s
            self._paused_here.update(self._pause_here(list(self._terms), timeout_s, REAPER_LOST))

    def _hand_over(self) -> None:
        if self._starts > 1:
            raise EndpointError("the process that pauses endpoints has already been replaced once.")
        self._client.close()
        self._client = self._start()
        self._client.set_deadline(self._until)
        for name, terms in self._terms.items():
            again = replace(terms, resuming=name in self._resumes_pending)
            self._client.begin_lease(again, timeout_s=self._settings.waits.arm_timeout_s)
            if name in self._ended:
                self._client.end_lease(name)

    def _warn(self, text: str) -> None:
        self.warnings = (*self.warnings, text)

    def _pause_here(
        self, names: list[str], timeout_s: float, reason: str
    ) -> dict[str, PauseReceipt]:
        if not names:
            return {}
        timings = replace(self._settings.timings, deadline_s=timeout_s)

        def end_lease(name: str) -> PauseReceipt:
            lease, terms = self._new_lease(name), self._terms[name]
            lease_store = self._settings.lease_store(name)
            resume_over = name not in self._resumes_pending
            pauser = Pauser(self._plane, terms, timings, resume_over=resume_over, clock=self._clock)
            lease_end = LeaseEnd(lease_store, lease, pauser, clock=self._clock)
            return lease_end.run(lambda told: self._record(told, lease), reason=reason)

        with ThreadPoolExecutor(len(names), "hfbudget-pause") as pool:
            return dict(zip(names, pool.map(end_lease, names), strict=True))

    def _new_lease(self, name: str) -> EndpointLease:
        pid, start = os.getpid(), process.start_time(os.getpid())
        return EndpointLease(
            run=self._settings.run,
            endpoint=name,
            api=self._settings.api,
            owner_pid=pid,
            owner_start=start,
            reaper_pid=pid,
            reaper_start=start,
            at=self._clock.time(),
            scaling=self._terms[name].scaling,
        )

    def _record(self, receipt: PauseReceipt, lease: EndpointLease) -> None:
        try:
            self._journal.write(journal_record(receipt, lease, at=self._clock.time()))
        except EndpointError as error:  # the disk may be full; go on pausing
            self._warn(str(error))


def _in_order(receipt: PauseReceipt | None) -> bool:
    return receipt is not None and receipt.in_order
