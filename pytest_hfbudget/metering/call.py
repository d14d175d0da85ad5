"""One call in flight: what it is sent with, and its settlement, exactly once."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from pytest_hfbudget.errors import BudgetExceededError
from pytest_hfbudget.ledger import Charge, Hold, Scope
from pytest_hfbudget.metering.limits import OutputLimit, RequestVariant, put
from pytest_hfbudget.metering.request import OutgoingCall, changed, fits, input_bound
from pytest_hfbudget.metering.settlement import charge_of, never_sent, status_of, word_for
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
    usage_without_count,
    written_bytes,
)
from pytest_hfbudget.money import show
from pytest_hfbudget.pricing import CallRequest, Quote, Usage
from pytest_hfbudget.text import printable

if TYPE_CHECKING:
    from pytest_hfbudget.metering.meter import Meter

logger = logging.getLogger("pytest_hfbudget")

# The status of a request that its transport has sent again.
AGAIN = "sent again"

BAD_REQUEST = 400
UNPROCESSABLE = 422
# What the proxy in front of an endpoint answers for one that is paused, scaled to zero or gone.
ASLEEP = frozenset({400, 404, 502, 503})


class Call:
    """What one pass through ``_inner_post`` holds, sends and is charged.

    Attributes:
        parameters: what is to be posted; a copy where the plugin added something.
        way: how it goes out, and whether it did.
        limit: the output limit that the plugin set because the caller set none. An answer that
            meets it was cut off, which is a refusal.
        manner: how it is sent where the plugin has a say in it.
        refusal: why it was not sent, if it came to that only on its way out.
        provider: who answered, as ``x-inference-provider`` says.
        swallow_usage: whether the plugin asked for a stream's usage, so that the chunk that
            carries nothing else is not shown to code which did not ask for it.
        complete: whether it was said that nothing more will be written, so that the usage seen is
            final also when the caller leaves before the end.
        seconds: how long it took, where it is settled later than that.
    """

    def __init__(
        self,
        meter: Meter,
        sending: OutgoingCall,
        request: CallRequest,
        quote: Quote | None,
        draft: Charge,
        hold: Hold,
        limit: OutputLimit | None,
    ) -> None:
        around = sending.around
        self.meter, self.parameters, self.way = meter, sending.parameters, sending.way
        self.request, self.quote, self.draft, self.hold = request, quote, draft, hold
        self.limit, self.manner = limit, sending.manner
        self.scopes, self.test, self.thresholds = around.scopes, around.test, around.thresholds
        self.capped, self.explicit = around.paid, around.explicit
        self.provider = request.provider
        self.swallow_usage = False
        self.refusal: BudgetExceededError | None = None
        self.usage: Usage | None = None
        self.compute_time: int | None = None
        self.images: int | None = None
        self.queued = False
        self.written = 0
        self.complete = False
        self.seconds: float | None = None
        self._final: Charge | None = None
        self._started = sending.started
        self._once = threading.Lock()

    # --- before it is sent

    def prepare(self) -> None:
        """Put the output limit and the wish for usage into a copy, where there is need for one."""
        payload = self.parameters.json
        if isinstance(payload, dict) and (self.limit is not None or self.request.stream):
            prepared = self._payload(dict(payload))
            if prepared != payload:
                self.parameters = changed(self.parameters, json=prepared)

    def _payload(self, payload: dict[str, Any]) -> dict[str, Any]:
        if self.limit is not None:
            put(payload, self.limit.tokens, self.manner)
        options = payload.get("stream_options") or {}
        # Without a cap nothing is changed; with one, a stream has to say what it cost.
        silent = self.request.stream and "messages" in payload and not options.get("include_usage")
        if silent and self.capped and self.manner.ask_usage:
            payload["stream_options"] = {**options, "include_usage": True}
            self.swallow_usage = True
        return payload

    def only_replayed(self, refusal: BudgetExceededError) -> None:
        """Let only those answer who need no network: before anything is sent, it is refused."""

        def stop() -> BudgetExceededError:
            if self.refusal is None:
                self.refusal = self.meter.refuse(self, refusal)
            return refusal

        self.way.passage.only_replayed(stop)

    # --- while it is sent

    def watch(self) -> None:
        """Hear of everything that is sent for it from now on."""
        passage = self.way.passage
        passage.heard, passage.again = self.headers, self.sent_again
        if self.capped:
            passage.check = self.check_body

    def sent_again(self) -> None:
        """Charge what was sent before, and hold what the transport is about to send once more.

        A redirect that keeps the method and a transport that retries each send a request that is
        billed by itself, and no answer to the one before it will be seen.

        Raises:
            BudgetExceededError: a budget has no room for another one.
        """
        if self.refusal is not None:
            raise self.refusal
        usage = None if self.capped else self._most_usage()
        earlier = self._held_in_full(AGAIN) if self.capped else self._charge_or_hold(usage, AGAIN)
        held = self.hold
        try:
            hold = self.meter.ledger.hold(self.draft.scopes, held.amount, held.amount, self.draft)
        except BudgetExceededError as error:
            self.refusal = self.meter.refuse(self, error)
            if self._first():
                self.meter.ledger.settle(held.id, earlier)
                self.meter.closed(self)
            raise
        self.hold = hold
        try:
            self.meter.ledger.settle(held.id, earlier)
        except KeyError:  # the call is booked already, so nothing later will book this request
            self.meter.ledger.settle(hold.id, self._held_in_full(AGAIN))

    def check_body(self, body: bytes | None) -> None:
        """Stop a request that something has changed since it was held.

        Raises:
            BudgetExceededError: it may cost more than what is held for it.
        """
        # Asked only now: some clients import their HTTP library when they first send.
        if not self.way.may_change() or (body is not None and fits(body, self._as_sent())):
            return
        if self.refusal is None:
            tightest = self._tightest()
            error = BudgetExceededError(
                f"{tightest.name}: a hook or a transport of the HTTP client has changed the "
                f"request to {self.request.model} after {show(self.hold.amount)} were held for "
                "it, and it may cost more now. The request was not sent. Change the request "
                "before the call instead.",
                scope=tightest.name,
                scope_key=tightest.key,
                cap=tightest.cap or 0,
                held=self.hold.amount,
                model=self.request.model,
            )
            self.refusal = self.meter.refuse(self, error)
        raise self.refusal

    def _as_sent(self) -> CallRequest:
        """What was held for, with what the plugin itself has put into it since."""
        return self.request._replace(
            max_output=self.limit.tokens if self.limit else self.request.max_output,
            input_bound=max(
                self.request.input_bound, input_bound(self.parameters.json, self.parameters.data)
            ),
        )

    # --- after it was sent

    @property
    def cuts(self) -> bool:
        """Whether an answer that meets a limit was cut off by the plugin's: a refusal."""
        return self.limit is not None and not self.way.replayed

    def headers(self, headers: Mapping[str, str]) -> None:
        """Note who answered, and what else a response's headers tell of its cost."""
        self.provider = printable(headers.get("x-inference-provider") or "") or self.provider
        self.usage = usage_in(headers, self.request)
        self.compute_time = compute_time(headers)

    def answered(self, body: object) -> None:
        """Settle a complete answer.

        Raises:
            BudgetExceededError: the answer was cut off by the limit that a cap had set.
        """
        if self.refusal is not None:  # a transport has swallowed it and answered by itself
            self._withdraw()
            raise self.refusal
        if self._usage_will_do and (usage := usage_of(ending_with_usage(body), self.request)):
            self._book(usage, "200")
            return
        message = parse_body(body)
        self.usage = usage_of(message, self.request) or self.usage
        self.images, self.queued = images_in(message), is_queued(message)
        if self.usage is None:
            self.written = written_bytes(message) if message else size_of(body)
            if self.request.generates and not message:
                self.lost("200")  # whatever was written is not in here
        self.settle("200")
        if self.cuts and finished_by_length(message):
            raise self.cut_off()

    def failed(self, error: BaseException) -> None:
        """Settle a call that raised: nothing for an error status, the hold if it may have run."""
        status = status_of(error)
        if self.refusal is not None:
            self._withdraw()
        elif status is not None:
            self._release(str(status))
        elif self._never_left(error):
            self._release("refused")
        else:
            self.lost(word_for(error))

    def _never_left(self, error: BaseException) -> bool:
        """Whether nothing of it can have reached a server.

        An exception that says so is believed without a cap only: a transport that retries may have
        sent the call before it failed to connect.
        """
        if self.way.unsent:
            return not self.way.replayed
        return not self.capped and not self.way.passage.posts and never_sent(error)

    def another_manner(self, error: BaseException) -> RequestVariant | None:
        """How to send it where a server refused something that only the plugin had asked for."""
        if status_of(error) not in (BAD_REQUEST, UNPROCESSABLE):
            return None
        words = f"{error}{getattr(error, 'response_error_payload', '')}"
        if self.swallow_usage and "stream_options" in words:
            return self.manner._replace(ask_usage=False)
        return self.manner.after(words, self.limit.tokens) if self.limit else None

    def revive(self, error: BaseException) -> bool:
        """Bring a leased endpoint back that somebody else has paused; whether it is back.

        Raises:
            BudgetExceededError: it was paused for the sake of a cap.
        """
        if self.way.replayed or not self.leased:
            return False
        asleep = status_of(error) in ASLEEP or never_sent(error)
        return asleep and self.meter.revive(self.leased)

    @property
    def leased(self) -> str | None:
        """The endpoint of this run that is called, if it is one."""
        return self.meter.book.leased_name(self.request.url)

    def cut_off(self) -> BudgetExceededError:
        """The refusal of an answer that ran into the limit which the plugin had set."""
        tightest = self._tightest()
        why = (
            f"which is what the {show(self.hold.amount)} that were left pay for. "
            "Raise the cap, or set max_tokens to what the answer needs."
            if self.limit and self.limit.by_cap
            else "the most that is asked for where nobody knows how many it can write. "
            "Set max_tokens to what the answer needs."
        )
        after = self.limit.tokens if self.limit else 0
        error = BudgetExceededError(
            f"{tightest.name}: {self.request.model} was stopped after {after} tokens, {why}",
            scope=tightest.name,
            scope_key=tightest.key,
            cap=tightest.cap or 0,
            held=self.hold.amount,
            needed=self.hold.amount,
            model=self.request.model,
        )
        error.used_up = self.limit is not None and self.limit.by_cap
        return self.meter.refuse(self, error)

    @property
    def _usage_will_do(self) -> bool:
        """Whether an answer's usage is all that is asked of it."""
        timed = self.quote is not None and self.quote.by_second
        return self.limit is None and not self.request.draws and not timed

    # --- settlement, once

    def settle(self, status: str) -> None:
        """Charge what usage says, or its upper bound where it says nothing."""
        if self.usage is None and self.capped and self.request.generates and self._unlimited:
            self._resolve(self.meter.ledger.settle, self._held_in_full(status))
            return
        self._book(self.usage or self._most_usage(), status)

    @property
    def _unlimited(self) -> bool:
        """Whether it was sent without a limit, because what was held pays for the whole context."""
        return self.request.max_output is None and self.limit is None

    def _most_usage(self) -> Usage:
        limit = self.limit.tokens if self.limit else self.request.max_output
        return usage_without_count(self.request, self.written, limit)

    def lost(self, status: str) -> None:
        """Charge a call of which nobody knows how far it got: the hold, unless usage was final.

        A server may have written on, and bill it, after the last usage that was seen.
        """
        if self.usage is not None and (self.complete or not self.capped):
            self._book(self.usage._replace(estimated=not self.complete), status)
        elif not self.capped or self.way.replayed:
            self.settle(status)
        else:
            self._resolve(self.meter.ledger.settle, self._held_in_full(status))

    def close(self) -> None:
        """Charge a call that was left before its end: a stream, or one that nobody waits for."""
        if self.way.unsent and not self.way.replayed:
            self._release("refused")
        else:
            self.lost("closed")

    def disown(self) -> None:
        """Settle nothing, because another process does."""
        self._once.acquire(blocking=False)

    @property
    def taken(self) -> bool:
        """Whether somebody has begun to book it: nobody else may."""
        return self._once.locked()

    def _book(self, usage: Usage, status: str) -> None:
        if not self.taken:
            self._resolve(self.meter.ledger.settle, self._charge_or_hold(usage, status))

    def _release(self, status: str) -> None:
        if self.taken:
            return
        charge = self._charge_or_hold(None, status)._replace(nano_usd=0, estimated=False)
        self._resolve(self.meter.ledger.release, charge)

    def _withdraw(self) -> None:
        """Take back a call that was refused: it was never made."""
        if self._first():
            self.meter.write(partial(self.meter.ledger.release, self.hold.id))
            self.meter.closed(self)

    def _charge_or_hold(self, usage: Usage | None, status: str) -> Charge:
        try:
            return charge_of(self, usage, status)
        except Exception:
            # A hook of somebody else's may raise; the call has been sent and must be booked.
            logger.exception("the price of a call could not be worked out; its hold is charged")
            return self._held_in_full(status)

    def _held_in_full(self, status: str) -> Charge:
        return self.draft._replace(
            provider=self.provider,
            nano_usd=self.hold.amount if self.capped else None,
            price_source="what was held" if self.capped else "unpriced",
            status=status,
            estimated=True,
            seconds=round(self.took(), 6),
        )

    def _resolve(self, how: Callable[[int, Charge], None], charge: Charge) -> None:
        """Book a charge, which is worked out by now: a Ctrl-C before this changes nothing."""
        self._final = charge = self._unless_replayed(charge)
        if not self._first():
            return
        # Where the ledger is gone, or has booked the hold when a connection broke, an answer that
        # was paid for is worth more to this process than an error: its next call is refused.
        self.meter.write(partial(how, self.hold.id, charge))
        self.meter.closed(self)
        if self.thresholds:
            self.meter.watcher.settled(self.thresholds, self.meter.ledger)

    def _first(self) -> bool:
        return self._once.acquire(blocking=False)

    def book_interrupted(self) -> None:
        """Book a call whose settlement was cut short by a Ctrl-C, unless it got through."""
        charge = self._final or self._unless_replayed(self._held_in_full("interrupted"))
        with suppress(KeyError):
            self.meter.ledger.settle(self.hold.id, charge)

    def _unless_replayed(self, charge: Charge) -> Charge:
        """What is booked: nothing was bought where the network was not asked."""
        if not self.way.replayed:
            return charge
        return charge._replace(nano_usd=0, price_source="replayed", replayed=True, endpoint=None)

    def took(self) -> float:
        """Seconds from its start to its end, or to now."""
        return self.meter.clock() - self._started if self.seconds is None else self.seconds

    def _tightest(self) -> Scope:
        def room(scope: Scope) -> int:
            return (scope.cap or 0) - self.meter.ledger.total(scope.key).spent

        return min((scope for scope in self.scopes if scope.cap is not None), key=room)
