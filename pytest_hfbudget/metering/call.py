"""One call in flight: what it is sent with, and its settlement, exactly once."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from pytest_hfbudget.errors import BudgetExceededError, HFBudgetError
from pytest_hfbudget.ledger import Charge, Hold, Scope
from pytest_hfbudget.metering.outcome import never_sent, status_of, word_for
from pytest_hfbudget.metering.request import Parameters
from pytest_hfbudget.metering.usage import (
    finished_by_length,
    parse_body,
    usage_of,
    usage_without_count,
    written_bytes,
)
from pytest_hfbudget.money import show
from pytest_hfbudget.pricing import CallRequest, Quote, Usage

if TYPE_CHECKING:
    from pytest_hfbudget.metering.meter import Meter

logger = logging.getLogger("pytest_hfbudget")

P = TypeVar("P", bound=Parameters)
BAD_REQUEST = 400
# What the proxy in front of an endpoint answers for one that is paused, scaled to zero or gone.
ASLEEP = frozenset({400, 404, 502, 503})


class Limit(NamedTuple):
    """A limit on the output tokens of a call whose caller set none.

    Attributes:
        by_cap: the cap pays for no more; otherwise it is the end of the context.
        certain: whether that end is known, so that an answer which meets it is simply complete.
    """

    tokens: int
    by_cap: bool
    certain: bool


class Call:
    """What one pass through ``_inner_post`` holds, sends and is charged.

    Attributes:
        parameters: what is to be posted; a copy where the plugin added something.
        limit: the output limit that the plugin set because the caller set none.
        cuts: whether an answer that meets this limit was cut off by it, which is a refusal.
        provider: who answered, as ``x-inference-provider`` says.
        swallow_usage: whether the plugin asked for a stream's usage, so that the chunk that
            carries nothing else is not shown to code which did not ask for it.
        complete: whether a stream has said that nothing more will be written, so that the usage
            seen is final also when the caller leaves before the end.
    """

    def __init__(
        self,
        meter: Meter,
        parameters: Parameters,
        request: CallRequest,
        quote: Quote | None,
        scopes: tuple[Scope, ...],
        draft: Charge,
        hold: Hold,
        limit: Limit | None,
        capped: bool,
    ) -> None:
        self.meter, self.parameters, self.request = meter, parameters, request
        self.quote, self.scopes, self.draft, self.hold = quote, scopes, draft, hold
        self.limit = limit.tokens if limit else None
        self.limited_by_cap = limit is not None and limit.by_cap
        self.cuts = limit is not None and (limit.by_cap or not limit.certain)
        self.capped = capped
        self.explicit = meter.payer.explicit()
        self.thresholds = meter.payer.thresholds()
        self.provider = request.provider
        self.swallow_usage = False
        self.usage: Usage | None = None
        self.written = 0
        self.complete = False
        self._started = meter.clock()
        self._once = threading.Lock()

    # --- before it is sent

    def prepare(self, *, ask_usage: bool) -> None:
        """Put the output limit and the wish for usage into a copy, where there is need for one."""
        payload = self.parameters.json
        if isinstance(payload, dict):
            prepared = self._payload(dict(payload), ask_usage)
            if prepared != payload:
                self.parameters = changed(self.parameters, json=prepared)

    def _payload(self, payload: dict[str, Any], ask_usage: bool) -> dict[str, Any]:
        if self.limit is not None:
            if isinstance(payload.get("parameters"), dict) and "messages" not in payload:
                payload["parameters"] = {**payload["parameters"], "max_new_tokens": self.limit}
            else:
                payload["max_tokens"] = self.limit
        options = payload.get("stream_options") or {}
        # Without a cap nothing is changed; with one, a stream has to say what it cost.
        silent = self.request.stream and "messages" in payload and not options.get("include_usage")
        if silent and self.capped and ask_usage:
            payload["stream_options"] = {**options, "include_usage": True}
            self.swallow_usage = True
        return payload

    # --- after it was sent

    def headers(self, headers: Mapping[str, str]) -> None:
        """Note who answered, from a response's headers."""
        self.provider = headers.get("x-inference-provider") or self.provider

    def answered(self, body: object) -> None:
        """Settle a complete answer.

        Raises:
            BudgetExceededError: the answer was cut off by the limit that a cap had set.
        """
        message = parse_body(body)
        self.usage = usage_of(message)
        self.written = written_bytes(message) if message else _size(body)
        self.settle("200")
        if self.cuts and finished_by_length(message):
            raise self.cut_off()

    def failed(self, error: BaseException) -> None:
        """Settle a call that raised: nothing for an error status, the hold if it may have run."""
        status = status_of(error)
        if status is not None:
            self._release(str(status))
        elif never_sent(error):
            self._release("refused")
        else:
            self.lost(word_for(error))

    def usage_was_rejected(self, error: BaseException) -> bool:
        """Whether a server refused ``stream_options``, which only the plugin had asked for."""
        return (
            self.swallow_usage
            and status_of(error) == BAD_REQUEST
            and "stream_options" in f"{error}{getattr(error, 'response_error_payload', '')}"
        )

    def revive(self, error: BaseException) -> bool:
        """Bring a leased endpoint back that somebody else has paused; whether it is back.

        Raises:
            BudgetExceededError: it was paused for the sake of a cap.
        """
        asleep = status_of(error) in ASLEEP or never_sent(error)
        return bool(self.leased and asleep and self.meter.revive(self.leased))

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
            if self.limited_by_cap
            else "the most that is asked for where nobody knows how many the model can write. "
            "Set max_tokens to what the answer needs."
        )
        error = BudgetExceededError(
            f"{tightest.name}: {self.request.model} was stopped after {self.limit} tokens, {why}",
            scope=tightest.name,
            scope_key=tightest.key,
            cap=tightest.cap or 0,
            held=self.hold.amount,
            needed=self.hold.amount,
            model=self.request.model,
        )
        error.used_up = self.limited_by_cap
        return self.meter.refuse(self, error)

    # --- settlement, once

    def settle(self, status: str) -> None:
        """Charge what usage says, or its upper bound where it says nothing."""
        usage = self.usage or usage_without_count(
            self.request, self.written, self.request.max_output or self.limit
        )
        self._book(usage, status)

    def lost(self, status: str) -> None:
        """Charge a call of which nobody knows how far it got: what was seen, else the hold."""
        if self.usage is not None:
            self._book(replace(self.usage, estimated=not self.complete), status)
        elif not self.capped:
            self.settle(status)
        elif self._first():
            self._tell(self.meter.ledger.settle, self._held_in_full(status))

    def close(self) -> None:
        """Charge a stream that was left before its end."""
        self.lost("closed")

    def _book(self, usage: Usage, status: str) -> None:
        if self._first():
            self._tell(self.meter.ledger.settle, self._charge_or_hold(usage, status))

    def _release(self, status: str) -> None:
        if self._first():
            charge = self._charge_or_hold(None, status)._replace(nano_usd=0, estimated=False)
            self._tell(self.meter.ledger.release, charge)

    def _charge_or_hold(self, usage: Usage | None, status: str) -> Charge:
        try:
            return self._charge(usage, status)
        except Exception:
            # A hook of somebody else's may raise; the call has been sent and must be booked.
            logger.exception("the price of a call could not be worked out; its hold is charged")
            return self._held_in_full(status)

    def _held_in_full(self, status: str) -> Charge:
        return self.draft._replace(
            provider=self.provider,
            nano_usd=self.hold.amount if self.capped else None,
            price_source="what was held",
            status=status,
            estimated=True,
            seconds=round(self.meter.clock() - self._started, 6),
        )

    def _tell(self, resolve: Callable[[int, Charge], None], charge: Charge) -> None:
        # Where the ledger is gone, or has booked the hold when a connection broke, an answer that
        # was paid for is worth more to this process than an error: its next call is refused.
        with suppress(HFBudgetError):
            resolve(self.hold.id, charge)
        self.meter.closed(self)
        self.meter.watcher.settled(self.thresholds, self.meter.ledger)

    def _first(self) -> bool:
        return self._once.acquire(blocking=False)

    def book_interrupted(self) -> None:
        """Book a call whose settlement was cut short by a Ctrl-C, unless it got through."""
        with suppress(KeyError):
            self.meter.ledger.settle(self.hold.id, self._held_in_full("interrupted"))

    def _charge(self, usage: Usage | None, status: str) -> Charge:
        quote, certain = self._final_quote()
        seconds = self.meter.clock() - self._started
        if usage is not None and not usage.microseconds:
            usage = replace(usage, microseconds=int(seconds * 1e6))
        if usage is not None and quote is not None and usage.estimated and not quote.by_token:
            # Counted by the call or by the image, which is exact; nothing is known of tokens.
            usage = replace(usage, input_tokens=0, output_tokens=0, estimated=False)
        cost, source = quote.cost(usage or Usage()) if quote else (None, "unpriced")
        return self.draft._replace(
            provider=self.provider,
            input_tokens=usage.input_tokens if usage else 0,
            output_tokens=usage.output_tokens if usage else 0,
            nano_usd=cost,
            price_source=source,
            status=status,
            estimated=not certain or bool(usage and usage.estimated),
            seconds=round(seconds, 6),
        )

    def _final_quote(self) -> tuple[Quote | None, bool]:
        """The price of whoever answered; False where that is one whose price nobody knows."""
        chosen = self.provider if self.request.provider is None else None
        if not chosen or self.request.is_url or self.explicit:
            return self.quote, True
        book = self.meter.book
        stated = book.stated(replace(self.request, provider=chosen))
        return stated or self.quote, bool(stated) or not book.stated(self.request)

    def _tightest(self) -> Scope:
        def room(scope: Scope) -> int:
            return (scope.cap or 0) - self.meter.ledger.total(scope.key).spent

        return min((scope for scope in self.scopes if scope.cap is not None), key=room)


def changed(parameters: P, **values: Any) -> P:
    """A copy of huggingface_hub's RequestParameters with some fields replaced."""
    if is_dataclass(parameters) and not isinstance(parameters, type):
        own = {field.name for field in fields(parameters)}
        return replace(parameters, **{k: v for k, v in values.items() if k in own})
    raise TypeError(f"{type(parameters).__name__} is not the RequestParameters that is known")


def _size(body: object) -> int:
    return len(body) if isinstance(body, (bytes, bytearray, str)) else 0
