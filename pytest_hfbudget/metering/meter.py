"""`Meter`: the prices, the budgets and the ledger of a process, and its calls in flight."""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Protocol
from urllib.parse import urlsplit

from pytest_hfbudget.errors import (
    BudgetExceededError,
    HFBudgetError,
    LedgerUnreachableError,
    UnaffordableEndpointError,
    UnseenCallError,
)
from pytest_hfbudget.ledger import Charge, LedgerLike, Refusal, Scope
from pytest_hfbudget.locks import holds_own_lock
from pytest_hfbudget.metering.bounds import TokenCounts
from pytest_hfbudget.metering.budget_args import ThresholdWatcher
from pytest_hfbudget.metering.budget_context import BudgetContext, RunningTest
from pytest_hfbudget.metering.paid_hosts import THIS_MACHINE
from pytest_hfbudget.pricing.book import PriceBook
from pytest_hfbudget.settings import HOLD_WAIT_S, ROUTER
from pytest_hfbudget.text import printable, public_url

# The longest reason for which a call was not metered, in characters: it is shown on one line.
LONGEST_REASON = 200

logger = logging.getLogger("pytest_hfbudget")


def _no_endpoint(name: str) -> bool:
    """Without a run no endpoint is leased."""
    return False


def _not_taken_over(name: str, form: Mapping[str, Any] | None) -> bool | None:
    """Without a run nothing could pause it, so it is only named."""
    return None


def _not_found(url: str) -> str | None:
    """Without a run no endpoint is taken over."""
    return None


@dataclass
class EndpointCallbacks:
    """What the meter asks of the part of a run that has its endpoints.

    Attributes:
        revive: resumes an endpoint that another run or a person has paused; returns whether it
            serves again.
        using: called with the name of an endpoint before a call to it is sent.
        take_over: called with the name of an endpoint that the code under test is about to start,
            and the form of a new one, else None. Returns True if the run will pause it at the end,
            False if nothing is to be done, None if the summary is only to name it.
        answered: called after that with its name, the status of the answer (0 if none came), and
            whether the request was for a pause instead of a start.
        find: returns the name of an endpoint that was taken over, by a URL below its own, or None.
    """

    revive: Callable[[str], bool] = _no_endpoint
    using: Callable[[str], object] = _no_endpoint
    take_over: Callable[[str, Mapping[str, Any] | None], bool | None] = _not_taken_over
    answered: Callable[[str, int, bool], object] = lambda name, status, stops: None
    find: Callable[[str], str | None] = _not_found


class OpenCall(Protocol):
    """A call that holds something: what ends it."""

    draft: Charge

    def close(self) -> None:
        """Charge a call that was left before its end."""

    def book_interrupted(self) -> None:
        """Book a call whose settlement was interrupted, unless that was booked."""

    def disown(self) -> None:
        """In a forked child: settle nothing, because the parent does."""


@dataclass
class Meter:
    """The prices, budgets and ledger of this process, and its calls in flight.

    Attributes:
        router: the base URL of the Hugging Face router; calls to the public one are sent there.
        emulator: the base URL of a rehearsal's emulator, empty in any other run.
        hold_wait: the most seconds that a call waits for calls in flight; 0: it does not wait.
        stops_with_ledger: whether calls without a cap are refused, too, once the ledger is gone.
        watcher: warns when a part of a budget is used up, and knows which fallback is due.
        counts: what servers have counted in prompts.
        later: changes of the ledger that wait for `drain`: those of a signal handler which has
            interrupted the ledger, and of streams that were garbage-collected, because the
            collector may run inside of a lock of the plugin.
        open_calls: the calls that hold something.
        opened: the scopes that are open in the ledger.
    """

    ledger: LedgerLike
    book: PriceBook
    budgets: BudgetContext
    router: str = ROUTER
    emulator: str = ""
    endpoints: EndpointCallbacks = field(default_factory=EndpointCallbacks)
    hold_wait: float = HOLD_WAIT_S
    clock: Callable[[], float] = time.monotonic
    stops_with_ledger: bool = True
    watcher: ThresholdWatcher = field(default_factory=ThresholdWatcher)
    counts: TokenCounts = field(default_factory=TokenCounts)
    later: deque[Callable[[], None]] = field(default_factory=deque)
    open_calls: dict[int, OpenCall] = field(default_factory=dict)
    opened: set[Scope] = field(default_factory=set)
    _unmetered: Counter[str] = field(default_factory=Counter)

    @cached_property
    def routers(self) -> tuple[str, ...]:
        """The base URLs under which the Hugging Face router may be addressed."""
        return (self.router, ROUTER)

    # --- calls that are not metered

    def count_unmeterable(self, error: Exception, *, capped: bool) -> None:
        """Count a call that can't be metered, and let it go out if it is not under a cap.

        Raises:
            HFBudgetError: it is under a cap.
        """
        if capped:
            raise HFBudgetError(
                f"this call could not be metered ({error!r}), so it was not sent; "
                "please report this with your version of huggingface_hub"
            ) from error
        # Not a warning: under -W error it would fail a test without a cap.
        logger.error("hfbudget could not meter a call", exc_info=error)
        self.count_unmetered(f"{type(error).__name__}: {error}")

    def count_unmetered(self, why: str) -> None:
        """Count a call without a cap that goes out without being metered."""
        self._unmetered[" ".join(why.split())[:LONGEST_REASON]] += 1
        self._tell_unmetered()

    def _tell_unmetered(self) -> None:
        # What kept the call from being metered may keep the ledger out of reach, too. Then the next
        # unmetered call, or the end of the test, tries again.
        with suppress(Exception):
            for why in tuple(self._unmetered):
                self.ledger.count_unmetered(why, self._unmetered[why])
                del self._unmetered[why]

    # --- steps in the ledger

    def open_scopes(self, scopes: tuple[Scope, ...]) -> None:
        """Open scopes in the ledger that are not open there yet."""
        for scope in scopes:
            self.ledger.open(scope)
            self.opened.add(scope)

    def write(self, step: Callable[[], None]) -> None:
        """Change the ledger, or put the change off, as `not_written` says."""
        try:
            step()
        except HFBudgetError as error:
            self.not_written(step, error)

    def not_written(self, step: Callable[[], None], error: HFBudgetError) -> None:
        """Put off a change that failed because a signal handler has interrupted the ledger.

        Any other error is dropped: the ledger is gone, or it has booked the hold when the
        connection broke. The next call is refused, and the caller keeps an answer that was paid.
        """
        gone = isinstance(error, LedgerUnreachableError)
        if isinstance(error, BudgetExceededError) and not gone:
            self.later.append(step)

    def refuse_unread(self, error: BudgetExceededError, model: str) -> BudgetExceededError:
        """As `refuse`, for a request of which only the model or the host is known."""
        budgets = self.budgets.active()
        self.open_scopes(budgets.scopes)
        test = budgets.test.id if budgets.test else None
        refusal = _refusal(test, model, error)
        self.write(partial(self.ledger.refuse, budgets.keys, refusal))
        self.budgets.record_refusal(error, budgets.test)
        return error

    def leaves(self, url: str, *, paid: bool) -> bool:
        """Whether a request would leave a rehearsal for a service that costs money.

        Args:
            paid: whether the place that it goes to bills; a server of this machine never does.
        """
        if not (paid and self.emulator):
            return False
        return urlsplit(url).hostname not in (urlsplit(self.emulator).hostname, *THIS_MACHINE)

    def refuse_to_leave(self, url: str) -> BudgetExceededError:
        """Record the refusal of a request that would leave a rehearsal, and return it."""
        where = printable(public_url(url))
        error = BudgetExceededError(
            f"{where} is not the emulator, and a rehearsal pays for nothing, so the request was "
            "not sent. Use a model or endpoint of the emulator, or skip this test in a rehearsal "
            "(--hf-emulator).",
            model=where,
        )
        return self.refuse_unread(error, where)

    def refuse_start(self, error: HFBudgetError, name: str) -> BudgetExceededError:
        """Record the refusal to start an endpoint that no budget can hold, and return it."""
        used_up = isinstance(error, UnaffordableEndpointError)
        session = self.budgets.session
        kind = BudgetExceededError if used_up else UnseenCallError
        told = "" if used_up else f"{name} was not started, because no cap can hold its cost: "
        refusal = kind(f"{told}{error}", scope=session.name, scope_key=session.key, model=name)
        return self.refuse_unread(refusal, name)

    def refuse(
        self, draft: Charge, error: BudgetExceededError, test: RunningTest | None
    ) -> BudgetExceededError:
        """Record a refusal where the code under test can't swallow it, and return it."""
        refusal = _refusal(draft.test, draft.model, error)
        self.write(partial(self.ledger.refuse, draft.scopes, refusal))
        self.budgets.record_refusal(error, test)
        return error

    def pass_on(self, refusals: list[BudgetExceededError], error: BaseException) -> None:
        """Give a block's refusals to the test, unless the error that leaves the block is one."""
        link: BaseException | None = error
        while link is not None:
            if link in refusals:
                return
            link = link.__cause__ or link.__context__
        if self.budgets.test:
            self.budgets.test.refusals.extend(refusals)

    def drain(self) -> None:
        """Make the changes of the ledger that were put off."""
        later = self.later
        if not later or holds_own_lock():
            return
        # Each is tried once: what still can't be written goes to the end, for the next time.
        for _ in range(len(later)):
            with suppress(IndexError, KeyError):  # another thread has taken it, or it was booked
                step = later.popleft()
                try:
                    self.write(step)
                except (KeyboardInterrupt, SystemExit):
                    later.appendleft(step)
                    raise

    # --- the end

    def settle_open(self, test: str | None) -> None:
        """Settle the calls that a test has left open, so that nothing is held after its end."""
        self._settle([call for call in list(self.open_calls.values()) if call.draft.test == test])

    def settle_all(self) -> None:
        """Settle all calls that are left open, at the end of the run."""
        self._settle(list(self.open_calls.values()))

    def _settle(self, calls: list[OpenCall]) -> None:
        self.drain()
        for call in calls:
            call.close()
        for call in calls:
            if self.open_calls.pop(id(call), None) is not None:
                with suppress(HFBudgetError):
                    call.book_interrupted()
        self._flush()

    def _flush(self) -> None:
        if self._unmetered:
            self._tell_unmetered()
        with suppress(HFBudgetError):  # a ledger that is gone has booked what was held
            self.ledger.flush()
            self.counts.exchange()

    def disown(self) -> None:
        """In a forked child: leave the open calls to the parent, which has sent them."""
        for call in self.open_calls.values():
            call.disown()
        self.open_calls.clear()
        self._unmetered.clear()
        self.later.clear()
        self.counts.disown()


def _refusal(test: str | None, model: str, error: BudgetExceededError) -> Refusal:
    said = str(error), error.scope_key, error.details
    return Refusal(test, error.scope, model, *said, *error.figures)
