"""The path of one paid call: describe, quote, hold; the rest is `call`."""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from pytest_hfbudget.errors import (
    BudgetExceededError,
    HFBudgetError,
    LedgerUnreachableError,
    interrupted,
)
from pytest_hfbudget.ledger import Charge, Hold, Ledger, LedgerLike, Refusal, Scope
from pytest_hfbudget.ledger.locks import inside
from pytest_hfbudget.metering.budget_context import ActiveBudgets, BudgetContext, RunningTest
from pytest_hfbudget.metering.call import Call
from pytest_hfbudget.metering.deferred import DeferredCall, DeferredCalls
from pytest_hfbudget.metering.limits import bounds, check_share, of_cap, unpriced
from pytest_hfbudget.metering.replay import SendWatch
from pytest_hfbudget.metering.request import (
    OutgoingCall,
    P,
    allowances,
    changed,
    describe,
    taken_once,
)
from pytest_hfbudget.metering.thresholds import ThresholdWatcher
from pytest_hfbudget.metering.waiting import CallerIds, HoldWait, Steps, blocking
from pytest_hfbudget.pricing import CallRequest, PriceBook, Quote
from pytest_hfbudget.pricing.table import is_below
from pytest_hfbudget.settings import HOLD_WAIT_S

DEFAULT_ROUTER = "https://router.huggingface.co"
EMULATED_TASK = "x-emulator-task"

# Of why a call was not metered, in characters: it is for one line.
LONGEST_REASON = 200

logger = logging.getLogger("pytest_hfbudget")


def _nobody(name: str) -> bool:
    """Without a run there is nobody who could bring an endpoint back."""
    return False


@dataclass
class Meter:
    """Everything that a call meets on its way out of this process.

    Attributes:
        watcher: sees when a part of a budget is used up.
        revive: brings a leased endpoint back that was paused by somebody else; whether it did.
        using: told the name of the leased endpoint that a call goes to, before it is sent.
        router: where the Hugging Face router is; calls to the public one are sent there too.
        emulator: the base URL of a rehearsal's emulator; empty in a run that is none.
        stops_with_ledger: whether calls that have no cap stop, too, once the ledger is gone.
        hold_wait: seconds that a call waits for calls in flight; 0 for none.
        dropped: calls whose stream was garbage-collected. They wait here instead of being
            settled on the spot, because the collector may run inside any of our own locks.
        deferred: what a signal handler could not do in the ledger, since it had interrupted it.
    """

    ledger: LedgerLike
    book: PriceBook
    payer: BudgetContext
    router: str = DEFAULT_ROUTER
    emulator: str = ""
    revive: Callable[[str], bool] = _nobody
    using: Callable[[str], object] = _nobody
    hold_wait: float = HOLD_WAIT_S
    clock: Callable[[], float] = time.monotonic
    stops_with_ledger: bool = True
    dropped: deque[Call] = field(default_factory=deque)
    deferred: deque[Callable[[], None]] = field(default_factory=deque)
    watcher: ThresholdWatcher = field(default_factory=ThresholdWatcher)
    _open: dict[int, Call] = field(default_factory=dict)
    _known: set[Scope] = field(default_factory=set)
    _callers: CallerIds = field(default_factory=CallerIds)
    _missed: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._notes = DeferredCalls(self._accounted, self.clock)

    def note(self, sending: OutgoingCall) -> DeferredCall | None:
        """What accounts for a call afterwards, where nothing depends on it; else None.

        It does where a budget has a limit or an endpoint is paid for by the minute, and in a
        process whose ledger is another one's: that may be gone.
        """
        plain = isinstance(self.ledger, Ledger) and not self.book.leased
        if not plain or sending.stream or sending.around.capped:
            return None
        return DeferredCall(self._notes, sending)

    def begin(self, sending: OutgoingCall, *, blocks: bool = True) -> Steps[Call | None]:
        """Hold what a call may cost, in every scope that encloses it; a wait is one of the steps.

        A call that no cap would hold goes on where it can be stopped on its way out, after
        everybody who may answer it instead of the network has had the chance to.

        ``blocks`` says whether the thread stands still meanwhile. The result is None where there is
        no cap and the call could not be understood: without a cap this only watches.

        Raises:
            BudgetExceededError: a cap would not hold the call, or the run that this process works
                for is gone; nothing is to be sent.
        """
        __tracebackhide__ = True
        self.drain()
        if inside():
            self._not_now(sending)
            return None
        try:
            call = yield from self._begin(sending, blocks)
        except BudgetExceededError as error:
            # How a refusal came about inside of here tells nobody anything; who called does.
            raise error.with_traceback(None) from None
        if call is not None:
            self._open[id(call)] = call
            call.watch()
        return call

    def _not_now(self, sending: OutgoingCall) -> None:
        """Deal with a call of a signal handler that has interrupted the ledger.

        Raises:
            LedgerBusyError: a cap would have to hold it.
        """
        __tracebackhide__ = True
        if not sending.around.capped:
            # Not `missed`, which asks the ledger; it is told with the next one, or at the end.
            self._missed["a signal handler called while the ledger was changing"] += 1
            return
        draft = self._draft(sending, self._request(sending), None)
        error = interrupted(draft.model)
        self._refuse(sending.around.keys, draft, error, sending.around.test)
        raise error

    def _begin(self, sending: OutgoingCall, blocks: bool) -> Steps[Call | None]:
        capped = sending.around.capped
        try:
            if sending.around.paid:
                sending = sending._replace(parameters=taken_once(sending.parameters))
            call = yield from self._hold(sending, self._request(sending), blocks)
        except BudgetExceededError as error:
            # Also in a worker whose run is gone: nobody reads its answers.
            gone = isinstance(error, LedgerUnreachableError)
            if gone and not capped and not self.stops_with_ledger:
                return None
            raise
        except Exception as error:
            if capped and isinstance(error, HFBudgetError):
                raise
            self.unknown(error, capped=capped)
            return None
        return call

    def unknown(self, error: Exception, *, capped: bool) -> None:
        """Let a call go that can't be metered, unless a budget around it has a limit.

        Raises:
            HFBudgetError: one has.
        """
        if capped:
            raise HFBudgetError(
                f"this call could not be metered ({error!r}), so it was not sent; "
                "please report this with your version of huggingface_hub"
            ) from error
        # Not a warning: under -W error that would fail a test that nobody has capped.
        logger.error("hfbudget could not meter a call", exc_info=error)
        self.missed(f"{type(error).__name__}: {error}")

    def missed(self, why: str) -> None:
        """Count a call that goes out without being metered, which no cap forbids."""
        self._missed[" ".join(why.split())[:LONGEST_REASON]] += 1
        self._tell_missed()

    def _tell_missed(self) -> None:
        # What keeps a call from the ledger may keep this from it, too, until the test is over.
        with suppress(Exception):
            for why in tuple(self._missed):
                self.ledger.miss(why, self._missed[why])
                del self._missed[why]

    def _accounted(self, sending: OutgoingCall) -> Call | None:
        return blocking(self._begin(sending, blocks=True))

    def _request(self, sending: OutgoingCall) -> CallRequest:
        request = describe(
            sending.parameters,
            routers=self.routers,
            hub_model=sending.named.model,
            provider=sending.named.provider,
            stream=sending.stream,
            timeout=sending.timeout,
        )
        # Images and sounds make no more tokens than a server would take. Text is bounded by its own
        # bytes, whatever the catalogue says of the context.
        longest = self.book.catalogue.contexts(request.model, request.provider).longest
        if longest is None or request.input_bound < longest:
            return request
        text = request.input_bound - allowances(sending.parameters.json)
        return request._replace(input_bound=max(text, min(longest - 1, request.input_bound)))

    @property
    def routers(self) -> tuple[str, ...]:
        """The base URLs under which the Hugging Face router may be addressed."""
        return (self.router, DEFAULT_ROUTER)

    def routed(self, parameters: P) -> P:
        """What is to be posted, with this run's router in place of the public one.

        Also for calls that can't be metered: a rehearsal must not reach the real service. The
        emulator is told the task, which an endpoint that plays them all can't see otherwise.

        Raises:
            TypeError: these are no parameters as huggingface_hub makes them.
        """
        if not isinstance(parameters.url, str):
            raise TypeError(f"its URL is of {type(parameters.url).__name__}")
        if self.router != DEFAULT_ROUTER and parameters.url.startswith(f"{DEFAULT_ROUTER}/"):
            parameters = changed(
                parameters, url=self.router + parameters.url[len(DEFAULT_ROUTER) :]
            )
        if self.emulator and is_below(parameters.url, self.emulator):
            headers = {**parameters.headers, EMULATED_TASK: parameters.task}
            parameters = changed(parameters, headers=headers)
        return parameters

    def drain(self) -> None:
        """Settle the calls whose streams nobody holds any more, and what was only noted."""
        if inside():
            return
        # Each once: what still can't be written goes to the end, for the next time.
        for _ in range(len(self.deferred)):
            with suppress(IndexError, KeyError):  # another thread has taken it, or it was booked
                self.write(self.deferred.popleft())
        while self.dropped:
            self.dropped.popleft().close()
        self._notes.account()

    def write(self, step: Callable[[], None]) -> None:
        """Take a step in the ledger, or put it off where a signal handler is in its way.

        That is the case in a handler, and in what it has interrupted, if it leaves with a refusal.
        """
        try:
            step()
        except LedgerUnreachableError:
            return
        except BudgetExceededError:
            self.deferred.append(step)
        except HFBudgetError:
            return

    def settle_open(self, test: str | None) -> None:
        """Settle what a test leaves open, so that nothing is held after its end."""
        with self._notes.lock:
            self.drain()
            self._notes.leave(test)
            for call in list(self._open.values()):
                if call.draft.test == test:
                    call.close()
        self._flush()

    def settle_all(self) -> None:
        """Settle whatever is left open, because nothing is settled after this."""
        with self._notes.lock:
            self.drain()
            self._notes.leave(every=True)
            for call in list(self._open.values()):
                call.close()
            for call in list(self._open.values()):
                with suppress(HFBudgetError):
                    call.book_interrupted()
            self._open.clear()
        self._flush()

    def _flush(self) -> None:
        self._tell_missed()
        with suppress(HFBudgetError):  # a ledger that is gone has booked what was held
            self.ledger.flush()

    def disown(self) -> None:
        """Leave the calls that are open to the process which has sent them: this is its child."""
        for call in self._open.values():
            call.disown()
        self._open.clear()
        self._missed.clear()
        self.dropped.clear()
        self.deferred.clear()
        self._notes.disown()

    def closed(self, call: Call) -> None:
        """Forget a call that is settled."""
        call.way.passage.over = True
        self._open.pop(id(call), None)

    def make_known(self, scopes: tuple[Scope, ...]) -> None:
        """Open scopes in the ledger that are not open there yet."""
        for scope in scopes:
            if scope not in self._known:
                self.ledger.open(scope)
                self._known.add(scope)

    def pass_on(self, refusals: list[BudgetExceededError], error: BaseException) -> None:
        """Hand a block's refusals to the test, unless the error that leaves the block is one."""
        link: BaseException | None = error
        while link is not None:
            if link in refusals:
                return
            link = link.__cause__ or link.__context__
        if self.payer.test:
            self.payer.test.refusals.extend(refusals)

    def refuse(self, call: Call, error: BudgetExceededError) -> BudgetExceededError:
        """Note a refusal where it can't be swallowed, and give it back to be raised."""
        self._refuse(call.draft.scopes, call.draft, error, call.test)
        return error

    def _hold(self, sending: OutgoingCall, request: CallRequest, blocks: bool) -> Steps[Call]:
        around, manner = sending.around, sending.manner
        leased = self.book.leased_name(request.url)
        draft = self._draft(sending, request, leased)
        self.make_known(around.scopes)
        if leased is not None:
            self.using(leased)
        quote, refusal = None, None
        try:
            quote = self._quote(request, around)
            least, highest = (0, 0)
            if quote and around.paid:
                least, highest = bounds(request, quote, manner, self.book.catalogue)
            answer = self._ask(around.keys, least, highest, draft, blocks)
            if isinstance(answer, HoldWait):
                yield answer
            hold = answer.hold() if isinstance(answer, HoldWait) else answer
            if leased and around.paid:
                check_share(self.ledger, around.test, hold, leased)
        except BudgetExceededError as error:
            refusal, hold = error, self._unpaid(sending.way, around, draft, error)
        limit = None
        try:
            if quote and around.paid and refusal is None:
                limit = of_cap(request, quote, hold.amount, self.book.catalogue, manner)
            call = Call(self, sending, request, quote, draft, hold, limit)
            if refusal is not None:
                call.only_replayed(refusal)
            call.prepare()
        except BaseException:
            self.ledger.release(hold.id)  # nothing was sent for it
            raise
        return call

    def _quote(self, request: CallRequest, around: ActiveBudgets) -> Quote | None:
        """The price; None where nobody knows it, and no cap has to."""
        try:
            quote = self.book.quote(request, around.explicit)
        except Exception:  # a hook of somebody else's
            if around.capped:
                raise
            logger.exception("the price of a call could not be worked out; it counts without one")
            return None
        if quote is None and around.paid:
            raise unpriced(request, around.scopes)
        return quote

    def _ask(
        self, keys: tuple[str, ...], least: int, most: int | None, draft: Charge, blocks: bool
    ) -> Hold | HoldWait:
        caller = self._callers.here(blocks=blocks) if self.hold_wait else None
        if caller is None:
            return self.ledger.hold(keys, least, most, draft)
        answer = self.ledger.ask(keys, least, most, draft, caller)
        if isinstance(answer, Hold):
            return answer
        return HoldWait(self.ledger, answer, self.hold_wait, self.drain)

    def _unpaid(
        self, way: SendWatch, around: ActiveBudgets, draft: Charge, error: BudgetExceededError
    ) -> Hold:
        """A hold of nothing, for a call that can be stopped later, right before it is sent.

        Raises:
            BudgetExceededError: it could leave unseen, or not even a replay is allowed.
        """
        try:
            if not way.watched():
                raise error
            return self.ledger.hold(around.keys, 0, 0, draft)
        except BudgetExceededError as final:
            self._refuse(around.keys, draft, final, around.test)
            raise

    def _draft(self, sending: OutgoingCall, request: CallRequest, leased: str | None) -> Charge:
        test = sending.around.test
        return Charge(
            test=test.id if test else None,
            task=request.task,
            model=request.model,
            provider=request.provider,
            input_tokens=0,
            output_tokens=0,
            nano_usd=None,
            price_source="",
            status="",
            estimated=False,
            seconds=0.0,
            where="" if test else sending.where,
            scopes=sending.around.keys,
            instead_of=sending.named.instead_of,
            at=sending.at,
            endpoint=leased,
        )

    def _refuse(
        self,
        keys: tuple[str, ...],
        draft: Charge,
        error: BudgetExceededError,
        test: RunningTest | None,
    ) -> None:
        refusal = Refusal(draft.test, error.scope, draft.model, str(error), error.scope_key)
        self.write(partial(self.ledger.refuse, keys, refusal))
        self.payer.blame(error, test)
