"""A run's keeper; and the next one, should the first be killed."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from pytest_hfbudget.endpoints import process
from pytest_hfbudget.endpoints.control import ControlPlane
from pytest_hfbudget.endpoints.journal import PAUSED, Journal, Record
from pytest_hfbudget.endpoints.link import KeeperLink
from pytest_hfbudget.endpoints.pace import Clock
from pytest_hfbudget.endpoints.pausing import Pauser
from pytest_hfbudget.endpoints.protocol import Arm, Receipt, Watch
from pytest_hfbudget.endpoints.spawn import Spawn
from pytest_hfbudget.endpoints.terms import EndpointSettings
from pytest_hfbudget.endpoints.transport import Route
from pytest_hfbudget.errors import EndpointError


class Guard:
    """Has endpoints paused by a keeper, and by this process if there can't be one."""

    def __init__(
        self,
        settings: EndpointSettings,
        plane: ControlPlane,
        journal: Journal,
        *,
        clock: Clock,
        spawn: Spawn,
    ) -> None:
        self._settings, self._plane, self._journal = settings, plane, journal
        self._clock, self._spawn = clock, spawn
        self._lock = threading.RLock()
        self._watches: dict[str, Watch] = {}
        self._unsettled: set[str] = set()
        self._own: dict[str, Receipt] = {}
        self._starts = 0
        self._until: float | None = None
        self.warnings: tuple[str, ...] = ()
        self._link = self._start()

    @property
    def keeper_pid(self) -> int | None:
        """Of the keeper that is on watch now."""
        return self._link.pid

    def watch(self, watch: Watch) -> None:
        """Put an endpoint under guard, just before it may be resumed.

        Raises:
            EndpointError: it can't be promised that it will be paused.
        """
        self.tend()
        with self._lock:
            self._watches[watch.endpoint] = watch
            self._unsettled.add(watch.endpoint)
            link = self._link
        link.watch(watch, timeout_s=self._settings.arm_timeout_s + self._settings.try_s)

    def settled(self, name: str) -> None:
        """The resume was answered, or is not going to be sent."""
        with self._lock:
            if name in self._unsettled:
                self._unsettled.discard(name)
                self._link.settled(name)

    def limit(self, seconds: float | None) -> None:
        """Have all paused that many seconds from now; None: not before the end."""
        with self._lock:
            self._until = None if seconds is None else self._clock.monotonic() + seconds
            self._link.limit(self._until)

    def ask(self) -> None:
        """Have all paused now, without waiting."""
        self._link.ask()

    def tend(self) -> None:
        """Look after the keeper: a lost one is replaced once, else all is paused from here."""
        with self._lock:
            if not self._watches and self._starts == 1 and self._link.lost:
                self._link = self._start()  # nothing was in its care yet
            elif self._link.lost and not self._own:
                self._replace()

    def pause(self, timeout_s: float) -> dict[str, Receipt]:
        """Have all paused and wait for it; by name, without those that took too long."""
        receipts = {receipt.endpoint: receipt for receipt in self._link.pause(timeout_s)}
        receipts.update(self._own)
        if self._link.lost:  # by now there is no time for another keeper
            missing = [name for name in self._watches if not _verified(receipts.get(name))]
            receipts.update(self._pause_here(missing, timeout_s))
        return receipts

    def receipts(self) -> dict[str, Receipt]:
        """What is known of pauses so far, by name."""
        known = {receipt.endpoint: receipt for receipt in self._link.receipts()}
        return {**known, **self._own}

    def close(self) -> None:
        """Let the keeper go; it finishes what it still has to do."""
        self._link.close()

    def _start(self) -> KeeperLink:
        self._starts += 1
        log = self._journal.path.with_suffix(f".{self._starts}.log")
        route = Route.find(self._settings.api)
        arm = Arm(
            token=self._settings.token,
            api=self._settings.api,
            owner_pid=os.getpid(),
            owner_start=process.start_time(os.getpid()),
            run=self._settings.run,
            journal=str(self._journal.path.absolute()),
            timings=self._settings.timings,
            ca_file=route.ca_file,
            proxy=route.proxy,
        )
        timeout_s = self._settings.arm_timeout_s
        return KeeperLink.start(
            arm, log=log, timeout_s=timeout_s, spawn=self._spawn, clock=self._clock
        )

    def _replace(self) -> None:
        self._warn("the process that pauses endpoints was killed")
        try:
            self._hand_over()
        except EndpointError as error:
            self._warn(f"endpoints were paused before the run's end: {error}")
            self._own.update(self._pause_here(list(self._watches), self._settings.retry_s))

    def _hand_over(self) -> None:
        if self._starts > 1:
            raise EndpointError("that process has been replaced once already.")
        self._link.close()
        self._link = self._start()
        self._link.limit(self._until)
        for name, watch in self._watches.items():
            self._link.watch(watch, timeout_s=self._settings.arm_timeout_s)
            if name not in self._unsettled:
                self._link.settled(name)

    def _warn(self, text: str) -> None:
        self.warnings = (*self.warnings, text)

    def _pause_here(self, names: list[str], timeout_s: float) -> dict[str, Receipt]:
        if not names:
            return {}
        timings = replace(self._settings.timings, deadline_s=timeout_s)
        pausers = [
            Pauser(
                self._plane,
                self._watches[name],
                timings,
                settled=name not in self._unsettled,
                clock=self._clock,
            )
            for name in names
        ]
        with ThreadPoolExecutor(len(pausers), "hfbudget-pause") as pool:
            return dict(
                zip(names, pool.map(lambda one: one.run(self._record), pausers), strict=True)
            )

    def _record(self, receipt: Receipt) -> None:
        record = Record(
            kind=PAUSED,
            run=self._settings.run,
            endpoint=receipt.endpoint,
            api=self._settings.api,
            at=self._clock.time(),
            owner_pid=os.getpid(),
            owner_start=process.start_time(os.getpid()),
            state=receipt.state,
            verified=receipt.verified,
            error=receipt.error,
        )
        try:
            self._journal.write(record)
        except EndpointError as error:  # a full disk is no reason to stop pausing
            self._warn(str(error))


def _verified(receipt: Receipt | None) -> bool:
    return receipt is not None and receipt.verified
