"""Before a call is sent: describe it, price it, and hold its bound in every budget around it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from pytest_hfbudget.errors import (
    BudgetExceededError,
    HFBudgetError,
    LedgerUnreachableError,
    RunOverError,
    UnpricedCallError,
    interrupted,
)
from pytest_hfbudget.ledger import Hold
from pytest_hfbudget.locks import OWN_LOCKS
from pytest_hfbudget.metering import limits
from pytest_hfbudget.metering.budget_context import current_caller
from pytest_hfbudget.metering.call import Call
from pytest_hfbudget.metering.limits import (
    RequestVariant,
    check_share,
    explain,
    limit_of,
    put_limit,
    unpriced,
    without_limit,
)
from pytest_hfbudget.metering.meter import Meter
from pytest_hfbudget.metering.prompt_size import InputBound, media_in
from pytest_hfbudget.metering.request import (
    OutgoingCall,
    Parameters,
    changed,
    describe,
    draft_of,
    with_own_payload,
)
from pytest_hfbudget.metering.usage import UNREADABLE_ANSWER
from pytest_hfbudget.metering.waiting import HoldWait
from pytest_hfbudget.pricing import CallRequest, Quote, UnboundedCallError
from pytest_hfbudget.pricing.book import PriceBook, toml_hint

logger = logging.getLogger("pytest_hfbudget")


class LateCall(Call):
    """An uncapped call by a signal handler that has interrupted the ledger.

    It is sent as any `Call`. What would settle it now is put off: it is held and settled once the
    ledger is free.
    """

    _held: Call | None = None

    def answered(self, body: object) -> None:
        self._put_off(lambda call: call.answered(body))

    def failed(self, error: BaseException) -> None:
        self._put_off(lambda call: call.failed(error))

    def settle(self, status: str) -> None:
        self._put_off(lambda call: call.settle(status))

    def lost(self, status: str) -> None:
        self._put_off(lambda call: call.lost(status))

    def close(self) -> None:
        self._put_off(Call.close)

    def drop(self) -> None:
        self.close()

    def _put_off(self, step: Callable[[Call], None]) -> None:
        if self._once.acquire(blocking=False):  # a stream may end more than once
            if self.outcome.ended is None:
                self.outcome.ended = self.meter.clock()
            self.meter.later.append(partial(self._hold_and_settle, step))

    def _hold_and_settle(self, step: Callable[[Call], None]) -> None:
        """Hold it and settle it; if a Ctrl-C had come in between, only settle it."""
        meter, watch = self.meter, self.outgoing.watch
        try:
            call = self._held = self._held or _held_call(meter, self.outgoing, blocking=True)
        except Exception as error:
            _not_held(meter, self.outgoing, error)
            return
        call.outcome = self.outcome
        meter.open_calls[id(call)] = call
        try:
            for _ in range(watch.booked + 1, watch.posts):
                watch.booked += 1
                call.sent_again()
            step(call)
        except HFBudgetError:
            raise
        except Exception:
            logger.exception(UNREADABLE_ANSWER)
            call.lost("200")


def begin(meter: Meter, outgoing: OutgoingCall, *, blocking: bool) -> Call | None:
    """The call, ready to be sent; or with its ``wait`` set, which has to end before `resume`.

    Args:
        blocking: whether waiting blocks the whole thread.

    Returns:
        The call; None if it can't be metered and has no cap, so that it is sent all the same.

    Raises:
        BudgetExceededError: nothing is to be sent: no cap would hold it, or its run is gone.
    """
    __tracebackhide__ = True
    # As `holds_own_lock`, but without a function call.
    if True in [lock._is_owned() for own in tuple(OWN_LOCKS) if (lock := own()) is not None]:
        return _interrupting(meter, outgoing)
    if meter.later:
        meter.drain()
    if meter.budgets.closed_because and (outgoing.budgets.capped or meter.emulator):
        raise _run_over(meter, outgoing)
    try:
        call = _held_call(meter, outgoing, blocking)
    except Exception as error:
        _not_held(meter, outgoing, error)
        return None
    if call.wait is None:
        meter.open_calls[id(call)] = call
        call.listen()
    return call


def resume(call: Call) -> Call | None:
    """The call, ready to be sent after its wait has ended; None as `begin`.

    Raises:
        BudgetExceededError: as `begin`.
    """
    __tracebackhide__ = True
    meter = call.meter
    try:
        _hold_after_wait(call)
    except Exception as error:
        _not_held(meter, call.outgoing, error)
        return None
    meter.open_calls[id(call)] = call
    call.listen()
    return call


def _interrupting(meter: Meter, outgoing: OutgoingCall) -> LateCall:
    """The uncapped call of a signal handler that has interrupted the ledger.

    Raises:
        LedgerBusyError: the call is under a cap.
    """
    __tracebackhide__ = True
    request = _described(meter, outgoing, outgoing.parameters, refused=True)
    draft = draft_of(outgoing, request, None)
    if not outgoing.budgets.capped:
        late = LateCall(meter, outgoing, request, draft)
        outgoing.watch.on_headers = late.headers
        return late
    error = interrupted(draft.model)
    meter.refuse(draft, error, outgoing.budgets.test)
    raise error


def _run_over(meter: Meter, outgoing: OutgoingCall) -> RunOverError:
    """The recorded refusal of a call after the end of its run, or before its beginning."""
    model = _described(meter, outgoing, outgoing.parameters, refused=True).model
    error = RunOverError(f"{model}: {meter.budgets.closed_because}", model=model)
    meter.budgets.record_refusal(error, outgoing.budgets.test)
    return error


def _not_held(meter: Meter, outgoing: OutgoingCall, error: Exception) -> None:
    """Note a call that goes out without being metered, because no cap needs to hold it.

    Raises:
        BudgetExceededError, HFBudgetError: it is not to be sent.
    """
    __tracebackhide__ = True
    capped = outgoing.budgets.capped
    if isinstance(error, BudgetExceededError):
        # A worker whose run is gone sends nothing either: no report would have its calls.
        gone = isinstance(error, LedgerUnreachableError)
        if gone and not capped and not meter.stops_with_ledger:
            return
        # A user needs the frames of the calling code, not those of this package.
        raise error.with_traceback(None) from None
    if capped and isinstance(error, HFBudgetError):
        raise error
    meter.count_unmeterable(error, capped=capped)


def _held_call(meter: Meter, outgoing: OutgoingCall, blocking: bool) -> Call:
    parameters = outgoing.parameters
    if outgoing.budgets.paid:
        parameters = with_own_payload(parameters)
    request = _described(meter, outgoing, parameters)
    book, endpoint = meter.book, None
    if book.leased or book.remote:
        endpoint = book.leased_name(request.url)
    if endpoint is None and not request.url.startswith(meter.routers):
        endpoint = meter.endpoints.find(request.url)
    draft = draft_of(outgoing, request, endpoint)
    if not meter.opened.issuperset(outgoing.budgets.scopes):
        meter.open_scopes(outgoing.budgets.scopes)
    if endpoint is not None:
        meter.endpoints.using(endpoint)
    call = Call(meter, outgoing, request, draft)
    call.parameters = parameters
    _hold(call, partial(_hold_or_queue, call, blocking))
    return call


def _hold_after_wait(call: Call) -> None:
    if call.wait is not None:
        wait, call.wait = call.wait, None
        call.draft = call.draft._replace(waited=round(wait.waited, 6))
        _hold(call, wait.hold)


def _described(
    meter: Meter, outgoing: OutgoingCall, parameters: Parameters, *, refused: bool = False
) -> CallRequest:
    if refused:
        bound = _no_bound
    elif outgoing.budgets.paid:
        bound = partial(meter.counts.bound, parameters, meter.book)
    else:  # the payload is the caller's own, and may change
        bound = partial(meter.counts.unlearned, parameters, meter.book)
    return describe(
        parameters,
        routers=meter.routers,
        asked=outgoing.asked,
        stream=outgoing.stream,
        timeout=outgoing.timeout,
        bound=bound,
    )


def _no_bound(model: str, provider: str | None) -> InputBound:
    """The bound of a call that is refused anyway, and so needs none."""
    return InputBound(0)


def _hold(call: Call, ask: Callable[[], Hold | HoldWait]) -> None:
    """Hold the bound of a call in every scope around it, or set its ``wait``.

    A call that a cap refuses still goes on if it can be stopped right before it leaves: a stand-in
    may answer it instead of the network.

    Raises:
        BudgetExceededError: a cap has refused it, and it is not to go on.
    """
    paid, refusal = call.outgoing.budgets.paid, None
    try:
        answer = ask()
        if isinstance(answer, HoldWait):
            call.wait = answer
            return
        call.held = answer
        if paid and call.draft.endpoint:
            check_share(call.meter.ledger, call.outgoing.budgets.test, answer, call.draft.endpoint)
    except BudgetExceededError as error:
        explain(error, call.request, call.quote, media_in(call.parameters.json).images)
        refusal = error
        call.held = _hold_nothing(call, error)
    try:
        if refusal is not None:
            _only_replayed(call, refusal)
        elif paid and call.quote is not None and call.request.max_output is None:
            catalogue, variant = call.meter.book.catalogue, call.outgoing.variant
            call.limit = limit_of(call.request, call.quote, call.held.amount, catalogue, variant)
        if call.limit is not None or call.request.stream:
            _prepare(call)
    except BaseException:
        call.meter.ledger.release(call.held.id)  # nothing was sent for it
        raise


def _hold_or_queue(call: Call, blocking: bool) -> Hold | HoldWait:
    meter, keys, least, most = call.meter, call.draft.scopes, 0, 0
    budgets = call.outgoing.budgets
    stated = budgets.explicit if call.draft.endpoint is None else None
    call.quote = stated or _price(call)
    if call.quote is not None and budgets.paid:
        least, most = _bounds(call.request, call.quote, call.outgoing.variant, meter.book)
    caller = current_caller(blocking=blocking) if meter.hold_wait else None
    if caller is None:
        return meter.ledger.hold(keys, least, most, call.draft)
    answer = meter.ledger.hold_or_queue(keys, least, most, call.draft, caller)
    if isinstance(answer, Hold):
        return answer
    return HoldWait(meter.ledger, answer, meter.hold_wait, meter.drain)


def _price(call: Call) -> Quote | None:
    """The price of a call; None if it has no known price and no cap, which would need one."""
    budgets, request = call.outgoing.budgets, call.request
    try:
        quote = call.meter.book.quote(request, budgets.explicit)
    except Exception:  # a price hook raised
        if budgets.capped:
            raise
        logger.exception("the price of a call could not be worked out; it counts without one")
        return None
    if quote is None and budgets.paid:
        raise unpriced(request, budgets.scopes)
    return quote


def _hold_nothing(call: Call, error: BudgetExceededError) -> Hold:
    """A hold of $0, for a call that can be stopped later, right before it leaves.

    Raises:
        BudgetExceededError: it could leave unseen, or no call is left even for a replay.
    """
    try:
        if not call.outgoing.watch.watched():
            raise error
        return call.meter.ledger.hold(call.draft.scopes, 0, 0, call.draft)
    except BudgetExceededError as final:
        call.refuse(final)
        raise


def _only_replayed(call: Call, refusal: BudgetExceededError) -> None:
    """Refuse a call as soon as it is about to leave; until then a stand-in may answer it."""

    def stop() -> BudgetExceededError:
        if call.refusal is None:
            call.refusal = call.refuse(refusal)
        return refusal

    call.outgoing.watch.stop = stop


def _prepare(call: Call) -> None:
    """Put the output limit and the request for a stream's usage into a copy of the payload."""
    payload = call.parameters.json
    if isinstance(payload, dict):
        prepared = _prepared(call, dict(payload))
        if prepared != payload:
            call.parameters = changed(call.parameters, json=prepared)


def _prepared(call: Call, payload: dict[str, Any]) -> dict[str, Any]:
    variant = call.outgoing.variant
    if call.limit is not None:
        put_limit(payload, call.limit.tokens, variant)
    options = payload.get("stream_options") or {}
    # Without a cap nothing is changed; with one, a stream has to tell its usage.
    may_ask = call.request.stream and ("messages" in payload or "prompt" in payload)
    silent = may_ask and not options.get("include_usage")
    if silent and call.outgoing.budgets.paid and variant.ask_usage:
        payload["stream_options"] = {**options, "include_usage": True}
        call.swallow_usage = True
    return payload


def _bounds(
    request: CallRequest, quote: Quote, variant: RequestVariant, book: PriceBook
) -> tuple[int, int]:
    """The least and the most nano-USD that a call may hold.

    Raises:
        UnpricedCallError: its price does not bound what it can cost.
        BudgetExceededError: its input or its output can't be bounded.

    """
    if quote.free:
        return 0, 0
    if request.unreadable:
        why, _, advice = request.unreadable.partition("\n")
        raise BudgetExceededError(
            f"{why}, so no cap can hold the call to {request.model}. The call was not sent. "
            f"{advice}",
            model=request.model,
        )
    try:
        if request.max_output is not None or not request.generates:
            fixed = quote.most(request, request.max_output or 0)
            return fixed, fixed
        catalogue = book.catalogue
        least, highest = quote.most(request, 1), limits.most(request, quote, catalogue)
        if variant.limit_name is None:
            return without_limit(request, highest, catalogue)
        return least, max(least, highest)
    except UnboundedCallError as error:
        raise UnpricedCallError(
            f"{error}, so no cap can hold it. The call was not sent. Add a price that does:\n\n"
            f"{toml_hint(request)}\n",
            model=request.model,
        ) from None
