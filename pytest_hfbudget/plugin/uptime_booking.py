"""Books the uptime of a run's endpoints to its session, a started minute at a time."""

from __future__ import annotations

import threading
import time

from pytest_hfbudget.endpoints.types import Endpoint
from pytest_hfbudget.errors import (
    BudgetExceededError,
    EndpointError,
    LedgerUnreachableError,
    UnaffordableEndpointError,
)
from pytest_hfbudget.ledger import Ledger
from pytest_hfbudget.ledger.scope import SESSION
from pytest_hfbudget.money import show
from pytest_hfbudget.plugin import run_history
from pytest_hfbudget.plugin.uptime_sharing import HORIZON_S, RunningEndpoint, seconds_left
from pytest_hfbudget.settings import Settings


class UptimeBooking:
    """What the endpoints of a run have cost by now, and until when the caps pay for them.

    Attributes:
        lock: held by a caller that reads and books in one step.
    """

    def __init__(self, ledger: Ledger, settings: Settings) -> None:
        self._ledger, self._settings = ledger, settings
        self.lock = threading.RLock()
        self._running: dict[str, tuple[RunningEndpoint, ...]] = {}
        self._booked = 0
        self._ended = 0  # nano-USD of spans that are over: a revived endpoint has begun another
        self._closed = False

    @property
    def accrues(self) -> bool:
        """Whether minutes may have started that are not booked."""
        return not self._closed and bool(self._running or self._booked)

    @property
    def has_deadline(self) -> bool:
        """Whether a cap or --hf-max-uptime ends what runs."""
        limited = run_history.caps(self._settings) or self._settings.max_uptime is not None
        return not self._closed and bool(self._running and limited)

    def begin(self, name: str, nano_per_minute: int) -> None:
        """Book the first minute of an endpoint, before it is resumed.

        Raises:
            UnaffordableEndpointError: a cap has less left than that minute costs.
            EndpointError: the ledger can't be reached.
        """
        try:
            with self.lock:
                self._ledger.book(SESSION, nano_per_minute, what=name)
                self._booked += nano_per_minute
                self._ended += self._cost(name)
                self._running[name] = (RunningEndpoint(time.monotonic(), nano_per_minute),)
        except LedgerUnreachableError as error:
            raise EndpointError(str(error)) from None
        except BudgetExceededError as error:
            own = error.scope_key == SESSION
            left = max(error.cap_nano - error.spent_nano - error.held_nano, 0)
            raise UnaffordableEndpointError(
                f"{error.scope}: {name}: its first minute costs {show(nano_per_minute)}, but only "
                f"{show(left)} of the {error.scope} of {show(error.cap_nano)} is left. It was not "
                f"resumed. Raise {'--hf-session-budget' if own else 'that cap'}."
            ) from None

    def grow(self, endpoint: Endpoint, more: int, nano_per_minute: int, *, ahead: bool) -> None:
        """Book a minute of replicas that are added, and hold that from now on.

        Replicas that may be added (``ahead``) have to fit; those that run already are booked
        whatever the cap says, and the deadline pauses the endpoint.

        Raises:
            UnaffordableEndpointError: a cap has less left.
            EndpointError: the ledger can't be reached.
        """
        name = endpoint.full_name
        with self.lock:
            if self._closed:
                return
            try:
                self._ledger.book(SESSION, nano_per_minute, what=name if ahead else "")
            except LedgerUnreachableError as error:
                raise EndpointError(str(error)) from None
            except BudgetExceededError as error:
                most, cap = endpoint.most_replicas, f"{error.scope} of {show(error.cap_nano)}"
                raise UnaffordableEndpointError(
                    f"{error.scope}: {name} may scale to {most} replicas. The first minute of "
                    f"{more} more costs {show(nano_per_minute)}, and the {cap} has less left. "
                    "Lower its maxReplica, or raise that cap."
                ) from None
            self._booked += nano_per_minute
            added = RunningEndpoint(time.monotonic(), nano_per_minute)
            self._running[name] = (*self._running.get(name, ()), added)

    def end(self, name: str, seconds_ago: float) -> None:
        """An endpoint that was paused so long ago starts no more minutes."""
        self._ended += self._cost(name, time.monotonic() - seconds_ago)
        self._running.pop(name, None)

    def forget(self, name: str) -> None:
        """An endpoint whose resume was refused, or never sent, has no first minute."""
        with self.lock:
            self._running.pop(name, None)

    def accrue(self) -> None:
        """Book every minute that has started by now; the next one, too, where runs share a cap."""
        started = self._ended + sum(map(self._cost, self._running))
        if not self._reserve(started):
            over_runs = self._settings.capped_over_runs
            self._book(max(started, self._booked) if over_runs else started)

    def close(self, nano_usd: int) -> None:
        """Book what it has cost in all; nothing accrues after this."""
        self._closed = True
        self._book(nano_usd)

    def seconds_left(self) -> float:
        """Seconds until the next minute would break a cap, or --hf-max-uptime is over."""
        now, settings = time.monotonic(), self._settings
        left = HORIZON_S
        if settings.max_uptime is not None:
            first = min(running.since for running in self._all_running)
            left = max(first + settings.max_uptime - now, 0.0)
        room = run_history.room(self._ledger, settings)
        if room is not None:
            budget = room + self._booked - self._ended
            running, minute_s = self._all_running, settings.billing_minute
            left = min(left, seconds_left(budget, running, now, minute_s))
        return left

    def _reserve(self, started: int) -> bool:
        """Book the next minute ahead where another run could take it; returns whether it is."""
        if not self._settings.capped_over_runs:
            return False
        ahead = sum(running.nano_per_minute for running in self._all_running)
        more = started + ahead - self._booked
        try:
            if more > 0:
                self._ledger.book(SESSION, more, what="the next minute")
                self._booked += more
            else:
                self._book(started + ahead)
        except BudgetExceededError:
            return False
        return True

    def _book(self, total: int) -> None:
        """Have the session charged with the uptime so far; at its end that may be less again."""
        with self.lock:
            if total != self._booked:
                self._ledger.book(SESSION, total - self._booked)
                self._booked = total

    def _cost(self, name: str, until: float | None = None) -> int:
        """Nano-USD of the minutes that it has begun by now, or by then on the steady clock."""
        at, minute_s = time.monotonic() if until is None else until, self._settings.billing_minute
        return sum(running.cost(at, minute_s) for running in self._running.get(name, ()))

    @property
    def _all_running(self) -> list[RunningEndpoint]:
        return [running for of_one in self._running.values() for running in of_one]
