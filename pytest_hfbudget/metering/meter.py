"""The path of one paid call: describe, quote, hold; the rest is `call`."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from pytest_hfbudget.errors import BudgetExceededError, HFBudgetError, UnpricedCallError
from pytest_hfbudget.ledger import Charge, Hold, LedgerLike, Refusal, Scope
from pytest_hfbudget.metering.call import Call, Limit, P, changed
from pytest_hfbudget.metering.payer import Payer
from pytest_hfbudget.metering.request import Parameters, describe
from pytest_hfbudget.pricing import CallRequest, PriceBook, Quote, UnboundedCallError
from pytest_hfbudget.pricing.book import DEDICATED_HOST, toml_hint

DEFAULT_ROUTER = "https://router.huggingface.co"

logger = logging.getLogger("pytest_hfbudget")

# Tokens of prompt and answer that any model in use can take, where nobody says how many it can.
UNKNOWN_CONTEXT = 8192


def _nobody(name: str) -> bool:
    """Without a run there is nobody who could bring an endpoint back."""
    return False


@dataclass
class Meter:
    """Everything that a call meets on its way out of this process.

    Attributes:
        revive: brings a leased endpoint back that was paused by somebody else; whether it did.
        router: where the Hugging Face router is; calls to the public one are sent there too.
        dropped: calls whose stream was garbage-collected. They wait here instead of being
            settled on the spot, because the collector may run inside any of our own locks.
    """

    ledger: LedgerLike
    book: PriceBook
    payer: Payer
    router: str = DEFAULT_ROUTER
    revive: Callable[[str], bool] = _nobody
    clock: Callable[[], float] = time.monotonic
    dropped: deque[Call] = field(default_factory=deque)
    _open: dict[int, Call] = field(default_factory=dict)
    _known: set[Scope] = field(default_factory=set)

    def begin(
        self,
        parameters: Parameters,
        *,
        hub_model: str | None = None,
        provider: str | None = None,
        stream: bool = False,
        ask_usage: bool = True,
    ) -> Call | None:
        """Hold what a call may cost, in every scope that encloses it.

        Returns None where there is no cap and the call could not be understood: without a cap
        this only watches.

        Raises:
            BudgetExceededError: a cap would not hold the call, or the run that this process works
                for is gone; nothing is to be sent.
        """
        self.drain()
        capped = True
        try:
            scopes = self.payer.scopes()
            capped = any(s.cap is not None or s.max_calls is not None for s in scopes)
            request = describe(
                parameters,
                routers=(self.router, DEFAULT_ROUTER),
                hub_model=hub_model,
                provider=provider,
                stream=stream,
            )
            call = self._hold(parameters, request, scopes)
            call.prepare(ask_usage=ask_usage)
        except BudgetExceededError:  # also a worker whose run is gone: nobody reads its answers
            raise
        except Exception as error:
            if capped:
                raise HFBudgetError(
                    f"this call could not be metered ({error!r}), so it was not sent; "
                    "please report this with your version of huggingface_hub"
                ) from error
            # Not a warning: under -W error that would fail a test that nobody has capped.
            logger.exception("hfbudget could not meter a call")
            return None
        self._open[id(call)] = call
        return call

    def routed(self, parameters: P) -> P:
        """What is to be posted, with this run's router in place of the public one.

        Also for calls that can't be metered: a rehearsal must not reach the real service.
        """
        if self.router == DEFAULT_ROUTER or not parameters.url.startswith(f"{DEFAULT_ROUTER}/"):
            return parameters
        return changed(parameters, url=self.router + parameters.url[len(DEFAULT_ROUTER) :])

    def drain(self) -> None:
        """Settle the calls whose streams nobody holds any more."""
        while self.dropped:
            self.dropped.popleft().close()

    def settle_open(self, test: str | None) -> None:
        """Settle what a test leaves open, so that nothing is held after its end."""
        self.drain()
        for call in list(self._open.values()):
            if call.draft.test == test:
                call.close()

    def settle_all(self) -> None:
        """Settle whatever is left open, because nothing is settled after this."""
        self.drain()
        for call in list(self._open.values()):
            call.close()
        for call in list(self._open.values()):
            with suppress(HFBudgetError):
                call.book_interrupted()
        self._open.clear()

    def closed(self, call: Call) -> None:
        """Forget a call that is settled."""
        self._open.pop(id(call), None)

    def known(self, scopes: tuple[Scope, ...]) -> tuple[str, ...]:
        """The keys of scopes, all of them opened in the ledger."""
        for scope in scopes:
            if scope not in self._known:
                self.ledger.open(scope)
                self._known.add(scope)
        return tuple(scope.key for scope in scopes)

    def pass_on(self, refusals: list[BudgetExceededError], error: BaseException) -> None:
        """Hand a block's refusals to the test, unless the error that leaves the block is one."""
        link: BaseException | None = error
        while link is not None:
            if link in refusals:
                return
            link = link.__cause__ or link.__context__
        if self.payer.test:
            self.payer.test.refusals.extend(map(str, refusals))

    def refuse(self, call: Call, error: BudgetExceededError) -> BudgetExceededError:
        """Note a refusal where it can't be swallowed, and give it back to be raised."""
        self._refuse(self.known(call.scopes), call.draft, error)
        return error

    def _hold(
        self, parameters: Parameters, request: CallRequest, scopes: tuple[Scope, ...]
    ) -> Call:
        keys = self.known(scopes)
        capped = any(scope.cap is not None for scope in scopes)
        draft = self._draft(request, keys)
        try:
            quote = self.book.quote(request, self.payer.explicit())
            if quote is None and capped:
                raise self._unpriced(request, scopes)
            least, most = self._bound(request, quote) if quote and capped else (0, 0)
            hold = self.ledger.hold(keys, least, most, draft)
        except BudgetExceededError as error:
            self._refuse(keys, draft, error)
            raise
        limit = self._limit(request, quote, hold, most) if quote and capped else None
        return Call(self, parameters, request, quote, scopes, draft, hold, limit, capped)

    def _bound(self, request: CallRequest, quote: Quote) -> tuple[int, int | None]:
        """The least and the most that this call may hold; None for all that there is."""
        if quote.free:
            return 0, 0
        try:
            if request.max_output is not None or not request.generates:
                fixed = quote.most(request, request.max_output or 0)
                return fixed, fixed
            longest = self.book.catalogue.longest_context(request.model, request.provider)
            return quote.most(request, 1), quote.most(request, longest or self._ceiling(request))
        except UnboundedCallError as error:
            raise UnpricedCallError(
                f"{error}, so no cap can hold it. The call was not sent. Add a price that does:\n\n"
                f"{toml_hint(request)}\n",
                model=request.model,
            ) from None

    def _limit(
        self, request: CallRequest, quote: Quote, hold: Hold, most: int | None
    ) -> Limit | None:
        """The limit that a call without one is sent with; None where none is needed."""
        if request.max_output is not None or not request.generates or quote.free:
            return None
        contexts = self.book.catalogue
        longest = contexts.longest_context(request.model, request.provider)
        if longest and hold.amount >= (most or 0):
            return None
        paid = quote.affordable_output(request, hold.amount)
        if paid is None:
            return None
        ceiling = self._ceiling(request)
        known = contexts.shortest_context(request.model, request.provider) is not None
        return Limit(min(paid, ceiling), by_cap=paid < ceiling, certain=known)

    def _ceiling(self, request: CallRequest) -> int:
        """The highest limit with which prompt and answer still fit into the context.

        A server answers 400 to one that does not. A prompt that fills the context by itself gets
        no answer with any limit, so none is worth worrying about there.
        """
        catalogue = self.book.catalogue
        shortest = catalogue.shortest_context(request.model, request.provider)
        room = (shortest or UNKNOWN_CONTEXT) - request.input_bound
        return room if room > 0 else UNKNOWN_CONTEXT

    def _draft(self, request: CallRequest, keys: tuple[str, ...]) -> Charge:
        test = self.payer.test
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
            where="" if test else self.payer.where,
            scopes=keys,
            at=time.time(),
        )

    def _unpriced(self, request: CallRequest, scopes: tuple[Scope, ...]) -> UnpricedCallError:
        capped = next(scope for scope in reversed(scopes) if scope.cap is not None)
        via = f" by {request.provider}" if request.provider else ""
        return UnpricedCallError(
            f"{capped.name}: nobody knows what {request.model}{via} costs for a "
            f"{request.task} call, so no cap can hold it. The call was not sent. "
            "Give its price as budget(price=…), in [tool.hfbudget.prices] of pyproject.toml, or "
            f"in the file of --hf-prices:\n\n{toml_hint(request)}\n{_endpoint_hint(request)}",
            scope=capped.name,
            scope_key=capped.key,
            cap=capped.cap or 0,
            model=request.model,
        )

    def _refuse(self, keys: tuple[str, ...], draft: Charge, error: BudgetExceededError) -> None:
        message = str(error)
        self.ledger.refuse(keys, Refusal(draft.test, error.scope, draft.model, message))
        for block in self.payer.open_blocks():
            if block.scope.key == error.scope_key:
                block.refusals.append(error)
                return
        owner = self.payer.test.refusals if self.payer.test else self.payer.unowned
        owner.append(message)


def _endpoint_hint(request: CallRequest) -> str:
    if DEDICATED_HOST not in request.url:
        return ""
    return (
        "\nIt is a dedicated endpoint. With @pytest.mark.hf_endpoint("
        '"namespace/name") its price is its uptime, and it is paused at the end.\n'
    )
