"""A run's reaper; and the next one, should the first be killed."""

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
from pytest_hfbudget.endpoints.lease_store import HeldLease
from pytest_hfbudget.endpoints.lifecycle_types import EndpointSettings
from pytest_hfbudget.endpoints.reaper_client import ReaperClient
from pytest_hfbudget.endpoints.reaper_messages import (
    ASKED,
    DEADLINE,
    REAPER_LOST,
    Arm,
    Receipt,
    Watch,
)
from pytest_hfbudget.endpoints.reaper_processes import SpawnedProcess
from pytest_hfbudget.endpoints.release import Pauser, Releaser, entry
from pytest_hfbudget.endpoints.transport import Route
from pytest_hfbudget.errors import EndpointError
from pytest_hfbudget.locks import Clock

# Why endpoints were paused before the end of their run.
EARLY = {
    DEADLINE: "the uptime that this run may have is used up, so its endpoints were paused.",
    REAPER_LOST: "the process that pauses endpoints was killed again, so what ran was paused.",
}

_KILLED = "the process that pauses endpoints was killed"


class Supervisor:
    """Has endpoints paused by a reaper, and by this process if there can't be one."""

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
        self._watches: dict[str, Watch] = {}
        self._unsettled: set[str] = set()
        self._own: dict[str, Receipt] = {}
        self._released: dict[str, Receipt | None] = {}  # None until it is verified
        self._starts = self._noticed = 0
        self._until: float | None = None
        self.warnings: tuple[str, ...] = ()
        self._client = self._start()

    @property
    def reaper_pid(self) -> int | None:
        """Of the reaper that is on watch now."""
        return self._client.pid

    def watch(self, watch: Watch) -> None:
        """Have the reaper pause an endpoint at the end, before it is resumed; or change how.

        Raises:
            EndpointError: it can't be promised that it will be paused.
        """
        self.tend()
        with self._lock:
            self._watches[watch.endpoint] = watch
            self._released.pop(watch.endpoint, None)
            change = self._unsettled.add if watch.resuming else self._unsettled.discard
            change(watch.endpoint)
            client = self._client
        settings = self._settings
        client.watch(watch, timeout_s=settings.waits.arm_timeout_s + settings.timings.try_s)

    def release(self, name: str) -> None:
        """Have one paused now, without waiting: the run is done with it."""
        with self._lock:
            self._released[name] = None
            self._client.release(name)

    def resuming(self, name: str) -> None:
        """A resume is going to be sent now, and may take effect late.

        Raises:
            EndpointError: see `watch`.
        """
        self.watch(replace(self._watches[name], resuming=True))

    def settled(self, name: str) -> None:
        """The resume was answered, or is not going to be sent."""
        with self._lock:
            if name in self._unsettled:
                self._unsettled.discard(name)
                self._client.settled(name)

    def limit(self, at_mono: float | None) -> None:
        """Have all paused at this moment of the steady clock; None: not before the end."""
        with self._lock:
            if at_mono != self._until:
                self._until = at_mono
                self._client.limit(at_mono)

    def early(self) -> str | None:
        """Why the endpoints were paused before this process asked for it; None if they weren't."""
        if self._own:
            return REAPER_LOST
        return DEADLINE if self._client.reason == DEADLINE else None

    def write(
        self, kind: str, found: Endpoint, *, scaling: Mapping[str, Any] | None = None
    ) -> None:
        """Have a line about an endpoint in the journal before the step that it announces.

        Raises:
            EndpointError: it can't be written.
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

    def ask(self) -> None:
        """Have all paused now, without waiting."""
        self._client.ask()

    def tend(self) -> None:
        """Look after the reaper: a lost one is replaced once, else all is paused from here."""
        with self._lock:
            self._client.end_if_stopped()
            self._notice_successions()
            self._notice_releases()
            if not (self._watches or self._released) and self._starts == 1 and self._client.lost:
                self._client = self._start()  # it had no endpoint yet
            elif self._client.lost and not self._own:
                self._replace()

    def pause(self, timeout_s: float) -> dict[str, Receipt]:
        """Have all paused and wait for it; by name, without those that took too long."""
        with self._lock:  # another thread may be having the reaper replaced
            client = self._client
        receipts = {receipt.endpoint: receipt for receipt in client.pause(timeout_s)}
        self._notice_releases()
        receipts.update({**self._paused_early(), **self._own})
        self._notice_successions()
        if self._client.lost:  # by now there is no time for another reaper
            missing = [name for name in self._watches if not _in_order(receipts.get(name))]
            if missing:
                self._warn(_KILLED)
            receipts.update(self._pause_here(missing, timeout_s, ASKED))
        return receipts

    def receipts(self) -> dict[str, Receipt]:
        """What is known of pauses so far, by name."""
        self._notice_releases()
        known = {receipt.endpoint: receipt for receipt in self._client.receipts()}
        return {**known, **self._paused_early(), **self._own}

    def wait_released(self, name: str, stopping: Callable[[], str]) -> Receipt:
        """Wait until the pause of a released endpoint is verified.

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
                raise EndpointError(f"{name} is not resumed: {why or self.late(name)}")
            self._clock.sleep(self._settings.timings.verify_poll_s / 4)

    def late(self, name: str) -> str:
        """What to say of a pause that the run has waited for in vain."""
        return (
            f"{name}: its pause was not verified within "
            f"{self._settings.waits.verify_deadline_s:g} s. Process {self.reaper_pid} goes on "
            f"trying; look with `hfbudget status {name.partition('/')[0]}`, or pause it: "
            f"`hfbudget pause {name}`"
        )

    def close(self) -> None:
        """Close the channel; the reaper finishes what it still has to do."""
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
        """Replace a reaper whose standby stepped in: something kills processes here."""
        if self._client.successions > self._noticed:
            self._noticed = self._client.successions
            self._warn(f"{_KILLED}; another one has taken over")

    def _notice_releases(self) -> None:
        """What was paused before the run's end is not watched any more."""
        with self._lock:
            for receipt in self._client.receipts() if None in self._released.values() else ():
                name = receipt.endpoint
                if receipt.in_order and self._released.get(name, receipt) is None:
                    self._released[name] = receipt
                    self._unsettled.discard(name)
                    self._watches.pop(name, None)

    def _paused_early(self) -> dict[str, Receipt]:
        return {name: told for name, told in list(self._released.items()) if told is not None}

    def _replace(self) -> None:
        self._warn(_KILLED)
        try:
            self._hand_over()
        except EndpointError as error:
            self._warn(f"endpoints were paused before the run's end: {error}")
            timeout_s = self._settings.waits.retry_s
            self._own.update(self._pause_here(list(self._watches), timeout_s, REAPER_LOST))

    def _hand_over(self) -> None:
        if self._starts > 1:
            raise EndpointError("the process that pauses endpoints has already been replaced once.")
        self._client.close()
        self._client = self._start()
        self._client.limit(self._until)
        for name, watch in self._watches.items():
            again = replace(watch, resuming=name in self._unsettled)
            self._client.watch(again, timeout_s=self._settings.waits.arm_timeout_s)
            if name in self._released:
                self._client.release(name)

    def _warn(self, text: str) -> None:
        self.warnings = (*self.warnings, text)

    def _pause_here(self, names: list[str], timeout_s: float, reason: str) -> dict[str, Receipt]:
        if not names:
            return {}
        timings = replace(self._settings.timings, deadline_s=timeout_s)

        def release(name: str) -> Receipt:
            lease, watch = self._new_lease(name), self._watches[name]
            lease_store = self._settings.lease_store(name)
            settled = name not in self._unsettled
            pauser = Pauser(self._plane, watch, timings, settled=settled, clock=self._clock)
            releaser = Releaser(lease_store, lease, pauser, clock=self._clock)
            return releaser.run(lambda told: self._record(told, lease), reason=reason)

        with ThreadPoolExecutor(len(names), "hfbudget-pause") as pool:
            return dict(zip(names, pool.map(release, names), strict=True))

    def _new_lease(self, name: str) -> HeldLease:
        pid, start = os.getpid(), process.start_time(os.getpid())
        return HeldLease(
            run=self._settings.run,
            endpoint=name,
            api=self._settings.api,
            owner_pid=pid,
            owner_start=start,
            reaper_pid=pid,
            reaper_start=start,
            at=self._clock.time(),
            scaling=self._watches[name].scaling,
        )

    def _record(self, receipt: Receipt, lease: HeldLease) -> None:
        try:
            self._journal.write(entry(receipt, lease, at=self._clock.time()))
        except EndpointError as error:  # a full disk is no reason to stop pausing
            self._warn(str(error))


def _in_order(receipt: Receipt | None) -> bool:
    return receipt is not None and receipt.in_order
