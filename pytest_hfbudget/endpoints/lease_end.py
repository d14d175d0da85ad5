"""Ends a run's lease on an endpoint: leaves it to another run, or pauses it and verifies that."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace

from pytest_hfbudget.endpoints import (
    GONE,
    RUN_TAG,
    Endpoint,
    process,
    run_tag,
    split_name,
    tagged_run,
    tagged_until,
    without_run_tags,
)
from pytest_hfbudget.endpoints import PAUSED as STATE_PAUSED
from pytest_hfbudget.endpoints.api import ControlPlane, ControlPlaneError
from pytest_hfbudget.endpoints.journal import LEFT, PAUSED, Record
from pytest_hfbudget.endpoints.lease_store import OVER, PAUSING, EndpointLease, LeaseStore
from pytest_hfbudget.endpoints.reaper_messages import DEADLINE, BeginLease, PauseReceipt
from pytest_hfbudget.endpoints.retry import LAST_TRY_S, MOST_RETRY_AFTER_S, RESTORE_S, Timings
from pytest_hfbudget.errors import EndpointError
from pytest_hfbudget.locks import SYSTEM_CLOCK, Clock


class Pauser:
    """Pauses one endpoint, and repeats that until the pause is verified or the deadline is over.

    The reaper uses it; the pytest process does if the reaper is lost.
    """

    def __init__(
        self,
        plane: ControlPlane,
        terms: BeginLease,
        timings: Timings,
        *,
        resume_over: bool,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """``resume_over`` is False while a resume without an answer may still take effect."""
        self._plane, self._terms, self._timings = plane.with_retry(timings.retry), terms, timings
        self._clock = clock
        began = clock.monotonic()
        self._ends = began + timings.deadline_s
        self._quiet_from = began + (0.0 if resume_over else timings.late_resume_s)
        self._state, self._error, self._attempts = "", "", 0
        self._send_at = began
        self._doubted: Callable[[PauseReceipt], None] | None = None
        self._superseded: Callable[[], str] = str
        self._told = False
        self._only = "", began  # the kind of error that is the only answer, and since when
        self._flips = 0

    @property
    def endpoint(self) -> str:
        """Full name of the endpoint that is to be paused."""
        return self._terms.endpoint

    def run(
        self,
        record: Callable[[PauseReceipt], None],
        *,
        doubted: Callable[[PauseReceipt], None] | None = None,
        superseded: Callable[[], str] = str,
    ) -> PauseReceipt:
        """Pause and verify, ``record`` the receipt, and only then restore the endpoint's settings.

        Raises nothing for errors of a server: the receipt has the error.

        Args:
            doubted: called with a receipt once the server has refused the token for ``doubt_s``;
                the pause is then tried until the deadline. None: give up at that point.
            superseded: returns the run that has to pause the endpoint instead; empty if none.
                Once it names a run, nothing more is sent.
        """
        self._doubted, self._superseded = doubted, superseded
        receipt = self._pause()
        record(receipt)
        if not receipt.verified or receipt.state == GONE or superseded():
            return receipt
        warnings, awake = self._restore()
        if awake:  # an update could wake the endpoint; the documentation does not rule it out
            receipt = self._pause()
            record(receipt)
        return replace(receipt, warnings=warnings, restored=not warnings)

    def failed(self, reason: str) -> PauseReceipt:
        """The receipt of a pause that can't be verified."""
        return PauseReceipt(
            endpoint=self.endpoint,
            state=self._state,
            verified=False,
            error=f"{reason} The endpoint may still cost money. To pause it: "
            f"`hfbudget pause {self.endpoint}`",
            attempts=self._attempts,
        )

    def _pause(self) -> PauseReceipt:
        if not self._until_paused():
            if run := self._superseded():
                return left_receipt(self.endpoint, run, self._clock.monotonic())
            return self.failed(self._unpaused())
        return PauseReceipt(
            endpoint=self.endpoint,
            state=self._state,
            verified=True,
            paused_at=self._clock.time(),
            paused_mono=self._clock.monotonic(),
            attempts=self._attempts,
        )

    def _until_paused(self) -> bool:
        failures = 0
        self._send_at = self._clock.monotonic()
        while True:
            try:
                if self._clock.monotonic() >= self._send_at:
                    if self._superseded():
                        return False
                    self._send()
                wait = self._look()
                failures, self._only = 0, ("", 0.0)
                if wait is None:
                    return True
            except ControlPlaneError as error:
                failures += 1
                self._error = str(error)
                if self._is_final(error):
                    return self._state == GONE
                retry_after = min(error.retry_after or 0.0, MOST_RETRY_AFTER_S)
                wait = self._timings.retry.wait(failures, retry_after)
            except Exception as error:  # try again after an unforeseen answer, too
                failures, self._error = failures + 1, f"{self.endpoint}: {error!r}"
                wait = self._timings.retry.wait(failures, 0.0)
            left = self._ends - self._clock.monotonic()
            if left <= LAST_TRY_S:
                return False
            self._clock.sleep(min(wait, left - LAST_TRY_S))  # leave time for a last try

    def _send(self) -> None:
        self._attempts += 1
        try:
            self._plane.pause(self._terms.endpoint)
        except ControlPlaneError as error:
            # These may just mean "already paused", in undocumented words, so the state decides.
            # Raise other errors: the caller tries again.
            if error.status not in (400, 404, 409, 422):
                raise
            self._error = str(error)
            if error.gone:
                return  # if the state can be read all the same, the pause is sent again at once
        self._send_at = self._clock.monotonic() + self._timings.resend_s

    def _look(self) -> float | None:
        """Read the state; returns seconds until the next look, None once the pause is certain."""
        before, self._state = self._state, self._plane.get(self._terms.endpoint).state
        if before == STATE_PAUSED != self._state:
            # A late resume, a resume by another process, or a server that has an old state.
            self._send_at = self._clock.monotonic()
            self._flips += 1
            return 0.0 if self._flips == 1 else self._timings.verify_poll_s
        if self._state != STATE_PAUSED or self._clock.monotonic() < self._quiet_from:
            return self._timings.verify_poll_s
        # Read twice: one server of several may have a newer, or a wrong, state.
        return None if before == STATE_PAUSED else 0.0

    def _is_final(self, error: ControlPlaneError) -> bool:
        """Whether an error ends the pause: only answers of its kind came for ``doubt_s``.

        A single 404, 401 or 403 is not believed: a gateway in trouble may answer so for seconds,
        while the endpoint runs.
        """
        kind = "gone" if error.gone else "denied" if error.denied else ""
        if kind != self._only[0]:
            self._only = kind, self._clock.monotonic()
        if not kind or (kind == "gone" and self._is_listed()):
            self._only = "", 0.0
            return False
        if self._clock.monotonic() - self._only[1] < self._timings.doubt_s:
            return False
        if kind == "gone":
            self._state = GONE
            return True
        if self._doubted is None:
            return True
        if not self._told:
            self._told = True
            self._doubted(self.failed(f"{self._unpaused()} The reaper goes on trying."))
        return False

    def _is_listed(self) -> bool:
        """Whether the namespace lists the endpoint; True as well if the list can't be read."""
        try:
            listed = self._plane.list(split_name(self.endpoint)[0])
        except ControlPlaneError as error:
            self._error = f"{self._error} But that is not certain: {error}"
            return True
        if any(one.full_name.casefold() == self.endpoint.casefold() for one in listed):
            self._error = f"{self._error} But the list of its namespace has it."
            return True
        return False

    def _unpaused(self) -> str:
        reason = self._error or f'the pause was accepted, but the state is "{self._state}".'
        return f"{self.endpoint} could not be paused: {reason}"

    def _restore(self) -> tuple[tuple[str, ...], bool]:
        """Restore scaling and tags; returns warnings, and whether the endpoint woke up by it."""
        terms = self._terms
        if terms.scaling is None and not terms.untag:
            return (), False
        plane = self._plane.with_retry(replace(self._timings.retry, total_s=RESTORE_S))
        try:
            payload = self._changes(plane.get(terms.endpoint))
            if payload:
                plane.update(terms.endpoint, payload)
            return (), plane.get(terms.endpoint).state != STATE_PAUSED
        except ControlPlaneError as error:
            if error.gone:
                return (), False
            return (
                f"{terms.endpoint}: its scaling could not be put back to {terms.scaling}: {error}",
            ), False

    def _changes(self, now: Endpoint) -> dict[str, object]:
        payload: dict[str, object] = {}
        if self._terms.scaling is not None and now.raw_scaling != self._terms.scaling:
            payload["compute"] = {"scaling": dict(self._terms.scaling)}
        # Remove the tags of all runs: the endpoint is paused, so no lease on it counts any more.
        kept = without_run_tags(now.tags)
        if self._terms.untag and kept != list(now.tags):
            payload["tags"] = kept
        return payload


class LeaseEnd:
    """Ends one run's lease on one endpoint. Used by the reaper, the supervisor and the sweep."""

    def __init__(
        self,
        lease_store: LeaseStore,
        lease: EndpointLease,
        pauser: Pauser,
        *,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """``lease`` is written if the store has no lease of this run."""
        self._lease_store, self._pauser, self._clock = lease_store, pauser, clock
        self._lease = replace(
            lease_store.own() or lease,
            phase=PAUSING,
            reaper_pid=os.getpid(),
            reaper_start=process.start_time(os.getpid()),
        )

    @property
    def endpoint(self) -> str:
        """Full name of the endpoint."""
        return self._lease.endpoint

    def run(
        self,
        record: Callable[[PauseReceipt], None],
        *,
        reason: str,
        doubted: Callable[[PauseReceipt], None] | None = None,
    ) -> PauseReceipt:
        """Leave the endpoint to another run, or pause it, and ``record`` that; see `Pauser.run`."""
        if reason == DEADLINE:
            self._lease_store.insist()
        trouble = self._announce()
        successor = self._successor()
        if successor is not None:
            receipt = self._left(successor, reason)
            record(receipt)
            self._lease_store.end(self._lease, paused=False)
            return receipt
        receipt = self._pauser.run(
            lambda told: record(replace(told, reason=reason)),
            doubted=doubted,
            superseded=self._lease_store.superseded,
        )
        # Keep the lease if settings could not be restored: the next run's pause restores them.
        self._lease_store.end(self._lease, paused=receipt.verified and receipt.restored)
        return replace(receipt, reason=reason, warnings=(*receipt.warnings, *trouble))

    def failed(self, error: str) -> PauseReceipt:
        """The receipt of a pause that can't be verified."""
        self._lease_store.end(replace(self._lease, phase=OVER), paused=False)
        return self._pauser.failed(error)

    def _announce(self) -> tuple[str, ...]:
        try:
            self._lease_store.put(self._lease)
        except EndpointError as error:  # pause it even if the disk is full
            return (str(error),)
        return ()

    def _successor(self) -> EndpointLease | None:
        try:
            return self._lease_store.successor()
        except OSError:  # pause it even if other leases can't be read
            return None

    def _left(self, successor: EndpointLease, reason: str) -> PauseReceipt:
        receipt = left_receipt(self.endpoint, successor.run, self._clock.monotonic())
        return replace(receipt, reason=reason)


def left_receipt(endpoint: str, run: str, at_mono: float) -> PauseReceipt:
    """The receipt of an endpoint that another run goes on using, and will pause."""
    return PauseReceipt(
        endpoint=endpoint,
        state=f"left to run {run}",
        verified=False,
        paused_mono=at_mono,
        left_to=run,
    )


def awake_again(
    plane: ControlPlane, lease_store: LeaseStore, lease: EndpointLease, *, at: float
) -> str:
    """The state of an endpoint that should be paused and is not; empty if all is well.

    All is also well if another run uses the endpoint by now, or it was deleted. After its pause an
    endpoint may wake: a lost resume takes effect late, or the settings that are restored wake it.
    A server may also have reported an old state as the pause.

    Args:
        at: unix seconds.

    Raises:
        ControlPlaneError: its state can't be read.
    """
    try:
        found = plane.get(lease.endpoint)
    except ControlPlaneError as error:
        if error.gone:
            return ""
        raise
    # Read the state before the leases: a run that resumes the endpoint writes its lease first.
    if found.state == STATE_PAUSED or lease_store.successor() or lease_store.pauser():
        return ""
    run, until = tagged_run(found.tags), tagged_until(found.tags)
    others = run is not None and RUN_TAG + run != run_tag(lease.run)
    return "" if others and (until or 0.0) >= at else found.state


def journal_record(receipt: PauseReceipt, lease: EndpointLease, *, at: float) -> Record:
    """The line in the journal for the end of a lease."""
    return Record(
        kind=LEFT if receipt.left_to else PAUSED,
        run=lease.run,
        endpoint=receipt.endpoint,
        api=lease.api,
        at=at,
        owner_pid=lease.owner_pid,
        owner_start=lease.owner_start,
        state=receipt.state,
        verified=receipt.verified,
        error=receipt.error,
        reason=receipt.reason,
        left_to=receipt.left_to,
    )
