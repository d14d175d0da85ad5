"""One call: held before it is sent, and settled after it, exactly once."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial

from pytest_hfbudget.errors import BudgetExceededError, HFBudgetError
from pytest_hfbudget.ledger import Charge, Hold, Scope
from pytest_hfbudget.metering.limits import (
    OutputLimit,
    RequestVariant,
    changed_after_hold,
    cut_off,
    tightest,
)
from pytest_hfbudget.metering.meter import Meter
from pytest_hfbudget.metering.prompt_size import bytes_bound
from pytest_hfbudget.metering.request import OutgoingCall, fits, json_object, payload_of
from pytest_hfbudget.metering.settlement import (
    REJECTED,
    UNANSWERED,
    CallResult,
    above_what_came,
    charge_of,
    is_asleep,
    price_of,
    replayed,
    service_refusal,
    status_of,
    usage_without_count,
    word_for,
)
from pytest_hfbudget.metering.usage import (
    compute_time,
    ending_with_usage,
    finished_by_length,
    images_in,
    is_queued,
    parse_body,
    size_of,
    usage_in,
    usage_of,
    written_bytes,
)
from pytest_hfbudget.metering.waiting import HoldWait
from pytest_hfbudget.pricing import BYTES, DRAW, UNLEARNED, CallRequest, Quote, Usage
from pytest_hfbudget.text import printable

logger = logging.getLogger("pytest_hfbudget")

# The status of a request that its transport has sent again.
AGAIN = "sent again"


class Call:
    """What one pass through ``_inner_post`` holds, sends and is charged.

    Attributes:
        parameters: what is to be posted; a copy if the plugin has added something.
        draft: its charge, as far as that is known before it is sent.
        quote: its price; None if it has no known price and no cap.
        held: what the ledger holds for it.
        wait: its place in the ledger's queue, while calls in flight are in its way.
        limit: the output limit of the plugin, as the caller set none. If it ends an answer, the
            caller gets a refusal.
        refusal: why the call was refused after it was held; None if it was not.
        outcome: what came back so far.
        swallow_usage: whether to hide a stream's usage, for which only the plugin has asked.
    """

    def __init__(
        self, meter: Meter, outgoing: OutgoingCall, request: CallRequest, draft: Charge
    ) -> None:
        self.meter, self.outgoing, self.request, self.draft = meter, outgoing, request, draft
        self.parameters = outgoing.parameters
        self.quote: Quote | None = None
        self.held = Hold(0, 0)
        self.wait: HoldWait | None = None
        self.limit: OutputLimit | None = None
        self.refusal: BudgetExceededError | None = None
        self.outcome = CallResult(request.provider)
        self.swallow_usage = False
        self._final: Charge | None = None
        self._once = threading.Lock()  # taken when its booking begins, and never released

    # --- while it is sent

    def listen(self) -> None:
        """Have the watch report to this call what happens to its request."""
        watch = self.outgoing.watch
        watch.on_headers, watch.on_resend = self.headers, self.sent_again
        watch.matches = self._matches
        if self.outgoing.budgets.paid:
            watch.check_body = self.check_body

    def sent_again(self) -> None:
        """Charge the request that was sent, and hold for the one that the transport sends next.

        A redirect that keeps the method, or a transport that retries, sends another request. That
        one is billed by itself, and the answer to the earlier one will not be seen.

        Raises:
            BudgetExceededError: a budget has no room for another request.
        """
        if self.refusal is not None:
            raise self.refusal
        paid, held, ledger = self.outgoing.budgets.paid, self.held, self.meter.ledger
        unpaid = None if paid else self._charge_or_hold(self._most_usage(), AGAIN)
        earlier = unpaid or self._held_in_full(AGAIN)
        try:
            hold = ledger.hold(self.draft.scopes, held.amount, held.amount, self.draft)
        except BudgetExceededError as error:
            self.refusal = self.refuse(error)
            if self._once.acquire(blocking=False):
                ledger.settle(held.id, earlier)
                self._closed()
            raise
        self.held = hold
        try:
            ledger.settle(held.id, earlier)
        except KeyError:  # the call is booked already, so nothing later will book this request
            ledger.settle(hold.id, self._held_in_full(AGAIN))

    def check_body(self, body: bytes | None, other: bool) -> None:
        """Stop a request that was changed since it was held, if it may cost more now.

        Args:
            other: whether it may be another request than the one that was held.

        Raises:
            BudgetExceededError: it may cost more than what is held for it.
        """
        # Asked only here, because some clients import their HTTP library when they first send.
        if not other and not self.outgoing.watch.may_change():
            return
        request = self.request
        if not self.meter.counts.same(request, json_object(body)):
            self.request = request._replace(prompt=None)  # its count is not that of this prompt
        if self._matches(body):
            return
        changed = changed_after_hold(request.model, self.held.amount, self._tightest())
        self.refusal = self.refusal or self.refuse(changed)
        raise self.refusal

    def _matches(self, body: bytes | None) -> bool:
        """Whether the body of a request asks for what was held, or for less of it."""
        images = self.meter.counts.images(self.request.model, self.request.provider)
        size = partial(bytes_bound, images=images)
        if body is None or not fits(body, self._as_sent(size), size):
            return False
        return json_object(body).get("model") == payload_of(self.parameters).get("model")

    def _as_sent(self, size: Callable[..., int]) -> CallRequest:
        """The request that was held, with what the plugin has put into it since."""
        request, bound = self.request, self.request.input_bound
        # A bound that comes from counts holds only for the prompt that was counted.
        if request.prompt is not None or (request.basis in UNLEARNED and not request.inputs):
            bound = max(bound, size(self.parameters.json, self.parameters.data))
        limit = self.limit.tokens if self.limit else request.max_output
        return request._replace(max_output=limit, input_bound=bound)

    # --- after it was sent

    def headers(self, headers: Mapping[str, str]) -> None:
        """Note who answered, and what else the headers of a response say about its cost."""
        outcome = self.outcome
        provider = printable(headers.get("x-inference-provider") or "")
        outcome.provider = provider or outcome.provider
        outcome.usage = usage_in(headers, self.request)
        outcome.compute_time = compute_time(headers)

    def answered(self, body: object) -> None:
        """Settle a complete answer.

        Raises:
            BudgetExceededError: the answer was cut off by the limit that a cap had set.
        """
        if self.refusal is not None:  # a transport has swallowed it and answered by itself
            self._withdraw()
            raise self.refusal
        request, outcome = self.request, self.outcome
        timed = self.quote is not None and self.quote.by_second
        # If only its usage is needed, the rest of the answer is not parsed.
        enough = self.limit is None and not timed and not request.task.endswith(DRAW)
        if enough and (usage := usage_of(ending_with_usage(body), request)):
            self._resolve(self.meter.ledger.settle, self._charge_or_hold(usage, "200"))
            return
        message = parse_body(body)
        outcome.usage = usage_of(message, request) or outcome.usage
        outcome.images, outcome.queued = images_in(message), is_queued(message)
        if outcome.usage is None:
            outcome.written = written_bytes(message) if message else size_of(body)
            if request.generates and not message:
                self.lost("200")  # what was written is not in here
        self.settle("200")
        if self.limit and finished_by_length(message) and not self.outgoing.watch.replayed:
            raise self.cut_off()

    def failed(self, error: BaseException) -> None:
        """Settle a call that raised: nothing for an error status, the hold if it may have run."""
        if not isinstance(error, Exception):  # a Ctrl-C may have come before the watch was left
            self.outgoing.watch.__exit__(type(error), error, None)
        status = status_of(error)
        if self.refusal is not None:
            self._withdraw()
        elif self.outcome.answer is not UNANSWERED:  # a Ctrl-C, right after it was answered
            self.close()
        elif status is not None:
            self._release(str(status))
            budgets, watch = self.meter.budgets, self.outgoing.watch
            told = service_refusal(status, error, self.request.model, budgets.session.key)
            if told is not None and not watch.replayed:
                budgets.record_refusal(told, self.outgoing.budgets.test)
        elif self.outgoing.watch.never_left(error, paid=self.outgoing.budgets.paid):
            self._release("refused")
        else:
            self.lost(word_for(error))

    def another_variant(self, error: BaseException) -> RequestVariant | None:
        """How to send it again if a server refused what only the plugin had added; else None."""
        if status_of(error) not in REJECTED:
            return None
        words = f"{error}{getattr(error, 'response_error_payload', '')}"
        if self.swallow_usage and "stream_options" in words:
            return self.outgoing.variant._replace(ask_usage=False)
        return self.outgoing.variant.after(words, self.limit.tokens) if self.limit else None

    def revive(self, error: BaseException) -> bool:
        """Bring back a leased endpoint that was paused meanwhile, and return whether it is back.

        Raises:
            BudgetExceededError: it was paused because of a cap.
        """
        name = self.draft.endpoint
        if self.outgoing.watch.replayed or name is None:
            return False
        return is_asleep(error) and self.meter.endpoints.revive(name)

    def cut_off(self) -> BudgetExceededError:
        """The refusal of an answer that ran into the limit which the plugin had set."""
        if self.refusal is None:  # else the end of its test has been quicker
            limit, around = self.limit or OutputLimit(0, by_cap=False), self._tightest()
            self.refusal = cut_off(self.request.model, limit, self.held.amount, around)
            self.refuse(self.refusal)
        return self.refusal

    # --- settlement, once

    def settle(self, status: str) -> None:
        """Charge the usage of the answer; if it has none, the upper bound."""
        usage, request = self.outcome.usage, self.request
        # It was sent without a limit, because the hold pays for the whole context.
        unlimited = request.generates and request.max_output is None and self.limit is None
        unknown_bound = bool(request.inputs) and self.outcome.provider is None
        if usage is None and (unlimited or unknown_bound) and self.outgoing.budgets.paid:
            self._resolve(self.meter.ledger.settle, self._held_in_full(status))
            return
        self._book(usage or self._most_usage(), status)

    def _most_usage(self) -> Usage:
        limit = self.limit.tokens if self.limit else self.request.max_output
        request = self.request.for_provider(self.outcome.provider)
        return usage_without_count(request, self.outcome.written, limit)

    def lost(self, status: str) -> None:
        """Charge a call whose answer did not arrive in full: the hold, unless usage was final.

        A server may have written more after the last usage that was seen, and will bill it.
        """
        usage, complete = self.outcome.usage, self.outcome.complete
        paid = self.outgoing.budgets.paid
        if usage is not None and (complete or not paid):
            self._book(usage._replace(estimated=not complete), status)
        elif not paid or self.outgoing.watch.replayed:
            self.settle(status)
        else:
            self._resolve(self.meter.ledger.settle, self._held_in_full(status))

    def close(self) -> None:
        """Charge a call that its caller has left before its end: a stream, or a call in a thread.

        A settlement that a Ctrl-C has interrupted begins again with the same answer.
        """
        watch = self.outgoing.watch
        if watch.unsent and not watch.replayed:
            self._release("refused")
        elif self.outcome.answer is not UNANSWERED and not self._once.locked():
            with suppress(Exception):  # a refusal of what was cut off, which is recorded by now
                self.answered(self.outcome.answer)
        if not self._once.locked():
            self.lost("closed")

    @property
    def took(self) -> float:
        """Seconds from its start to its answer, or to now."""
        now = self.meter.clock() if self.outcome.ended is None else self.outcome.ended
        return now - self.outgoing.started

    def drop(self) -> None:
        """Close it later, because the garbage collector may run inside of the plugin's locks."""
        self.meter.later.append(self.close)

    def disown(self) -> None:
        """In a forked child: settle nothing, because the parent does."""
        self._once.acquire(blocking=False)

    def _book(self, usage: Usage, status: str) -> None:
        if not self._once.locked():
            self._resolve(self.meter.ledger.settle, self._charge_or_hold(usage, status))

    def _release(self, status: str) -> None:
        charge = self._charge_or_hold(None, status)._replace(nano_usd=0, estimated=False)
        self._resolve(self.meter.ledger.release, charge)

    def _withdraw(self) -> None:
        """Release a call that was refused on its way; charge it if it was sent once before."""
        if self.outgoing.watch.posts > self.outgoing.watch.booked:
            self.lost(AGAIN)
        elif self._once.acquire(blocking=False):
            self.meter.write(partial(self.meter.ledger.release, self.held.id))
            self._closed()

    def _charge_or_hold(self, usage: Usage | None, status: str) -> Charge:
        request, quote, outcome = self.request, self.quote, self.outcome
        budgets = self.outgoing.budgets
        try:
            if usage and budgets.explicit is not None and usage.reported_cost is not None:
                usage = usage._replace(reported_cost=None)  # the budget's own price counts
            if request.provider is not None or budgets.explicit is not None:
                price = quote, quote is None or quote.certain
            else:
                price = price_of(self.meter.book, request, quote, outcome.provider)
            charge = charge_of(self.draft, request, price, outcome, usage, status, self.took)
            learns = request.prompt is not None or request.basis != BYTES
            self.outcome.counted = usage if learns and not self.outgoing.watch.replayed else None
        except Exception:
            # A price hook may raise; the call has been sent and must be booked.
            logger.exception("the price of a call could not be worked out; its hold is charged")
            return self._held_in_full(status)
        over = (charge.nano_usd or 0) - self.held.amount
        return charge._replace(over=over) if budgets.paid and over > 0 else charge

    def _held_in_full(self, status: str) -> Charge:
        paid = self.outgoing.budgets.paid
        return self.draft._replace(
            provider=self.outcome.provider,
            nano_usd=self.held.amount if paid else None,
            price_source="what was held" if paid else "unpriced",
            status=status,
            estimated=True,
            seconds=round(self.took, 6),
        )

    def _resolve(self, how: Callable[[int, Charge], None], charge: Charge) -> None:
        """Book a finished charge by ``how``; a Ctrl-C before this has changed nothing."""
        if self.outgoing.watch.replayed:
            charge = replayed(charge)
        elif charge.estimated:
            charge = above_what_came(charge, self.request, self.quote, self.outcome)
        if self._once.locked():
            return
        self._final = charge
        if not self._once.acquire(blocking=False):
            return
        try:
            how(self.held.id, charge)
        except KeyError:
            pass  # the end of its test has booked it as an interrupted call
        except HFBudgetError as error:
            self.meter.not_written(partial(how, self.held.id, charge), error)
        self._closed()
        if self.outcome.counted is not None:  # once, or the same count would confirm itself
            self.meter.counts.learn(self.request, self.outcome.provider, self.outcome.counted)
        if self.outgoing.budgets.thresholds:
            self.meter.watcher.settled(self.outgoing.budgets.thresholds, self.meter.ledger)

    def _closed(self) -> None:
        self.outgoing.watch.settled = True
        self.meter.open_calls.pop(id(self), None)

    def book_interrupted(self) -> None:
        """Book a call whose settlement a Ctrl-C has interrupted, unless that was booked."""
        charge = self._final or self._held_in_full("interrupted")
        if self.outgoing.watch.replayed:
            charge = replayed(charge)
        with suppress(KeyError):
            self.meter.ledger.settle(self.held.id, charge)

    def refuse(self, error: BudgetExceededError) -> BudgetExceededError:
        """Record a refusal where the code under test can't swallow it, and return it."""
        return self.meter.refuse(self.draft, error, self.outgoing.budgets.test)

    def _tightest(self) -> Scope:
        return tightest(self.outgoing.budgets.scopes, self.meter.ledger)
