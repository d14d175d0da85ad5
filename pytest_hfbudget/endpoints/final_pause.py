"""How a reaper pauses one endpoint, or all of them, and checks later that they stay paused."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from pytest_hfbudget.endpoints.api import ControlPlane, ControlPlaneError
from pytest_hfbudget.endpoints.journal import Journal
from pytest_hfbudget.endpoints.lease_end import LeaseEnd, Pauser, awake_again, journal_record
from pytest_hfbudget.endpoints.lease_store import EndpointLease, LeaseStore
from pytest_hfbudget.endpoints.reaper_messages import (
    ASKED,
    AWAKE,
    Arm,
    BeginLease,
    Done,
    Message,
    PauseReceipt,
    Pausing,
)
from pytest_hfbudget.endpoints.retry import LOOK_S, STUCK_S, Timings
from pytest_hfbudget.endpoints.shared_leases import open_lease_store
from pytest_hfbudget.errors import EndpointError
from pytest_hfbudget.locks import SYSTEM_CLOCK, Clock

# How often the state is read in one look: servers behind one address may not agree.
_READINGS = 2


@dataclass
class LeasedEndpoint:
    """One endpoint that the reaper is to pause.

    Attributes:
        resume_over: no resume of it is under way.
        retaken: the run uses it again after its pause, so the later looks are skipped.
    """

    terms: BeginLease
    lease: EndpointLease
    resume_over: bool = False
    retaken: bool = False


def lease_store_of(arm: Arm, name: str) -> LeaseStore:
    """The store of the leases on an endpoint, for the run that a reaper serves."""
    folder = Path(arm.lease_dir)
    return open_lease_store(folder, api=arm.api, endpoint=name, run=arm.run, shared=arm.shared)


class FinalPause:
    """Pauses the endpoints of a reaper, each in a thread of its own."""

    def __init__(
        self,
        arm: Arm,
        plane: ControlPlane,
        journal: Journal,
        *,
        tell: Callable[[Message], None],
        log: Callable[[str], None],
        wake: Callable[[], None],
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """Neither ``tell`` nor ``log`` may raise.

        Args:
            tell: sends a message to the client, if it still runs.
            wake: called in another thread when `collect` has something to return.
        """
        self._arm, self._plane, self._journal = arm, plane, journal
        self._tell, self._log, self._wake, self._clock = tell, log, wake, clock
        # Receipts, and whether each is the last about its endpoint.
        self._receipts: queue.SimpleQueue[tuple[PauseReceipt, bool]] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._at_work: set[str] = set()
        self._woke = False

    def end_lease(self, leased: LeasedEndpoint) -> None:
        """Begin to pause an endpoint while the run goes on.

        If no thread can be started, the endpoint is paused at the end of the run instead.
        """
        name = leased.terms.endpoint
        if name not in self._at_work and self._begin(leased, ASKED):
            self._at_work.add(name)
            self._log(f"{name}: the run is done with it")

    def at_work(self, name: str) -> bool:
        """Whether the pause of an endpoint has begun and not yet ended."""
        return name in self._at_work

    def collect(self) -> Iterator[PauseReceipt]:
        """The receipts of `end_lease` since the last call; sends each to the client as well."""
        while True:
            try:
                receipt, last = self._receipts.get_nowait()
            except queue.Empty:
                return
            self._take(receipt, last)
            self._tell(receipt)
            yield receipt

    def pause(self, every: Iterable[LeasedEndpoint], reason: str) -> bool:
        """Pause all endpoints; returns whether each is verified, or left to another run.

        The client gets `Done` once it has a receipt for each endpoint. A pause may still succeed
        after a receipt with an error. Only the journal then gets the better receipt.
        """
        leased = tuple(every)
        waiting = [one for one in leased if not self.at_work(one.terms.endpoint)]
        unstarted = [one for one in waiting if not self._begin(one, reason)]
        # The requests come first: no message to the client may delay them.
        self._tell(Pausing(reason))
        names = {one.terms.endpoint for one in leased}
        if names:
            self._log(f"{reason}: pausing {', '.join(sorted(names))}")
        for one in unstarted:
            self._pause(one, reason)
        self._at_work |= names
        return self._follow(names)

    def look_again(self) -> bool:
        """Wait for the later looks; returns whether all endpoints have stayed paused."""
        timings = self._arm.timings
        ends = (
            self._clock.monotonic() + max(timings.looks_s, default=0.0) + _longest_pause_s(timings)
        )
        for thread in self._threads:
            thread.join(max(ends - self._clock.monotonic(), 0.0))
        return not self._woke

    def _follow(self, unsent: set[str]) -> bool:
        ends = self._clock.monotonic() + _longest_pause_s(self._arm.timings)
        verified = True
        if not unsent:
            self._tell(Done())
        while self._at_work:
            try:
                receipt, last = self._receipts.get(timeout=max(ends - self._clock.monotonic(), 0.0))
            except queue.Empty:
                self._log("a pause did not come to an end in time")
                if unsent:
                    self._tell(Done())
                return False
            self._take(receipt, last)
            if unsent:  # else the client has closed the channel
                self._tell(receipt)
                unsent.discard(receipt.endpoint)
                if not unsent:
                    self._tell(Done())
            if last:
                verified = verified and receipt.in_order
        return verified

    def _take(self, receipt: PauseReceipt, last: bool) -> None:
        self._log(f"{receipt.endpoint}: {receipt.error or receipt.state}")
        if last:
            self._at_work.discard(receipt.endpoint)

    def _begin(self, leased: LeasedEndpoint, reason: str) -> bool:
        """Pause an endpoint in a thread; returns False if no thread can be started."""
        thread = threading.Thread(target=self._pause_and_look, args=(leased, reason), daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            self._log(f"{leased.terms.endpoint}: {error}")
            return False
        self._threads.append(thread)
        return True

    def _pause_and_look(self, leased: LeasedEndpoint, reason: str) -> None:
        if self._pause(leased, reason).verified:
            self._look_later(leased)

    def _pause(self, leased: LeasedEndpoint, reason: str) -> PauseReceipt:
        name = leased.terms.endpoint
        end = self._lease_end(leased, resume_over=leased.resume_over)

        def doubted(receipt: PauseReceipt) -> None:
            told = replace(receipt, reason=reason)
            self._record(told, leased.lease)
            self._put(told, last=False)

        try:
            receipt = end.run(
                lambda told: self._record(told, leased.lease),
                reason=reason,
                doubted=doubted,
            )
        except Exception as error:  # report a bug of ours to the client, or it would wait
            self._log(f"{name}: {error!r}")
            receipt = end.failed(f"{name}: the reaper failed: {error!r}")
        self._put(receipt, last=True)
        return receipt

    def _put(self, receipt: PauseReceipt, *, last: bool) -> None:
        self._receipts.put((receipt, last))
        self._wake()

    def _lease_end(self, leased: LeasedEndpoint, *, resume_over: bool) -> LeaseEnd:
        arm, name = self._arm, leased.terms.endpoint
        pauser = Pauser(self._plane, leased.terms, arm.timings, resume_over=resume_over)
        return LeaseEnd(self._lease_store(name), leased.lease, pauser)

    def _lease_store(self, name: str) -> LeaseStore:
        return lease_store_of(self._arm, name)

    def _look_later(self, leased: LeasedEndpoint) -> None:
        paused_at = self._clock.monotonic()
        for after_s in self._arm.timings.looks_s:
            self._clock.sleep(paused_at + after_s - self._clock.monotonic())
            if leased.retaken:
                return
            try:
                state = self._look(leased)
            except ControlPlaneError as error:
                self._log(f"{leased.terms.endpoint}: not looked at after {after_s:g} s: {error}")
                continue
            if state:
                self._pause_again(leased, f'"{state}" {after_s:g} s after its pause was verified')

    def _look(self, leased: LeasedEndpoint) -> str:
        timings, name = self._arm.timings, leased.terms.endpoint
        plane = self._plane.with_retry(replace(timings.retry, total_s=LOOK_S))
        for left in reversed(range(_READINGS)):
            at = self._clock.time()
            state = awake_again(plane, self._lease_store(name), leased.lease, at=at)
            if state or not left:
                break
            self._clock.sleep(timings.verify_poll_s)
        return state

    def _pause_again(self, leased: LeasedEndpoint, what: str) -> None:
        """Pause an endpoint that runs again, after its pause was verified.

        The journal says so first, so that a sweep finds the endpoint if this process ends now.
        """
        self._woke = True
        name = leased.terms.endpoint
        self._log(f"{name}: {what}")
        awake = PauseReceipt(name, state="", verified=False, error=f"it was {what}", reason=AWAKE)
        self._record(awake, leased.lease)
        receipt = self._lease_end(leased, resume_over=True).run(
            lambda told: self._record(told, leased.lease), reason=AWAKE
        )
        self._log(f"{name}: {receipt.error or receipt.state}")

    def _record(self, receipt: PauseReceipt, lease: EndpointLease) -> None:
        try:
            self._journal.write(journal_record(receipt, lease, at=self._clock.time()))
        except EndpointError as error:  # a full disk; the pause itself is done
            self._log(str(error))


def _longest_pause_s(timings: Timings) -> float:
    return timings.deadline_s + timings.late_resume_s + 2 * timings.try_s + STUCK_S
