"""Pausing one endpoint, and not believing it until the state says so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from pytest_hfbudget.endpoints import tags
from pytest_hfbudget.endpoints.control import ControlPlane
from pytest_hfbudget.endpoints.pace import SYSTEM_CLOCK, Clock
from pytest_hfbudget.endpoints.protocol import Receipt, Timings, Watch
from pytest_hfbudget.endpoints.refusal import ControlPlaneError
from pytest_hfbudget.endpoints.state import GONE, PAUSED, Endpoint

# A server may ask for an hour; a bill that runs can't wait for it.
_MOST_RETRY_AFTER_S = 60.0
# One may be a hiccup of the server's own, or of a gateway before it; three in a row are an answer.
_DENIALS = _NOT_FOUND = 3
_RESTORE_S = 5.0
_LAST_TRY_S = 0.2


class Pauser:
    """Pauses one endpoint until it is verified, or the deadline is over.

    Shared by the keeper and, should that be lost, its owner.
    """

    def __init__(
        self,
        plane: ControlPlane,
        watch: Watch,
        timings: Timings,
        *,
        settled: bool,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """``settled`` is False while a resume may be under way that nobody will see answered."""
        self._plane, self._watch, self._timings = plane.with_pace(timings.pace), watch, timings
        self._clock = clock
        self._began = clock.monotonic()
        self._ends = self._began + timings.deadline_s
        self._quiet_from = self._began + (0.0 if settled else timings.settle_s)
        self._state, self._error, self._attempts = "", "", 0
        self._send_at = self._began

    @property
    def endpoint(self) -> str:
        """Full name of what is to be paused."""
        return self._watch.endpoint

    def run(self, record: Callable[[Receipt], None]) -> Receipt:
        """Pause, verify, ``record`` it, and only then put the endpoint's settings back.

        Never raises for what a server does; the receipt tells.
        """
        receipt = self._pause()
        record(receipt)
        if not receipt.verified or receipt.state == GONE:
            return receipt
        warnings, awake = self._restore()
        if awake:  # seen by no one yet, but nothing published says that it can't happen
            receipt = self._pause()
            record(receipt)
        return replace(receipt, warnings=warnings, restored=not warnings)

    def failed(self, reason: str) -> Receipt:
        """The receipt of a pause that can't be verified."""
        return Receipt(
            endpoint=self.endpoint,
            state=self._state,
            verified=False,
            error=f"{reason} It may still cost: `hfbudget pause {self.endpoint}`",
            attempts=self._attempts,
        )

    def _pause(self) -> Receipt:
        if not self._until_paused():
            reason = self._error or f'the pause was accepted, but the state is "{self._state}".'
            return self.failed(f"{self.endpoint} could not be paused: {reason}")
        return Receipt(
            endpoint=self.endpoint,
            state=self._state,
            verified=True,
            paused_at=self._clock.time(),
            paused_mono=self._clock.monotonic(),
            attempts=self._attempts,
        )

    def _until_paused(self) -> bool:
        failures = denials = missing = 0
        self._send_at = self._clock.monotonic()
        while True:
            try:
                if self._clock.monotonic() >= self._send_at:
                    self._send()
                    self._send_at = self._clock.monotonic() + self._timings.resend_s
                wait = self._look()
                failures = denials = missing = 0
                if wait is None:
                    return True
            except ControlPlaneError as error:
                failures += 1
                denials = denials + 1 if error.denied else 0
                missing = missing + 1 if error.gone else 0
                self._error = str(error)
                if missing >= _NOT_FOUND:
                    self._state = GONE
                    return True
                if denials >= _DENIALS:
                    return False
                retry_after = min(error.retry_after or 0.0, _MOST_RETRY_AFTER_S)
                wait = self._timings.pace.wait(failures, retry_after)
            except Exception as error:  # an answer that nobody foresaw: no reason to let it run
                failures, self._error = failures + 1, f"{self.endpoint}: {error!r}"
                wait = self._timings.pace.wait(failures, 0.0)
            left = self._ends - self._clock.monotonic()
            if left <= _LAST_TRY_S:
                return False
            self._clock.sleep(min(wait, left - _LAST_TRY_S))  # a last try, however long the wait

    def _send(self) -> None:
        self._attempts += 1
        try:
            self._plane.pause(self._watch.endpoint)
        except ControlPlaneError as error:
            # A 400 may just mean "already paused", in words that nobody has published: the
            # state decides. What may pass with time goes to the caller, to be tried again.
            if error.status not in (400, 404, 409, 422):
                raise
            self._error = str(error)

    def _look(self) -> float | None:
        """Seconds until the next look; None when the pause is certain."""
        before, self._state = self._state, self._plane.get(self._watch.endpoint).state
        if before == PAUSED != self._state:
            self._send_at = self._clock.monotonic()  # a resume came late, or was somebody else's
            return 0.0
        quiet = self._clock.monotonic() >= self._quiet_from
        if self._state == PAUSED and quiet:
            return None
        return self._timings.poll_s

    def _restore(self) -> tuple[tuple[str, ...], bool]:
        """What could not be put back, and whether the endpoint has woken up over it."""
        watch = self._watch
        if watch.scaling is None and not watch.untag:
            return (), False
        plane = self._plane.with_pace(replace(self._timings.pace, total_s=_RESTORE_S))
        try:
            payload = self._changes(plane.get(watch.endpoint))
            if payload:
                plane.update(watch.endpoint, payload)
            return (), plane.get(watch.endpoint).state != PAUSED
        except ControlPlaneError as error:
            if error.gone:
                return (), False
            return (
                f"{watch.endpoint}: its scaling could not be put back to {watch.scaling}: {error}",
            ), False

    def _changes(self, now: Endpoint) -> dict[str, object]:
        payload: dict[str, object] = {}
        if self._watch.scaling is not None and now.raw_scaling != self._watch.scaling:
            payload["compute"] = {"scaling": dict(self._watch.scaling)}
        # All runs': it is paused now, so nobody's lease on it means anything any more.
        kept = tags.without_lease(now.tags)
        if self._watch.untag and kept != list(now.tags):
            payload["tags"] = kept
        return payload
