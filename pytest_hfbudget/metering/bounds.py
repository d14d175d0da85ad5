"""What a call may cost at least and at most, and how one is refused that nothing bounds."""

from __future__ import annotations

from pytest_hfbudget.errors import BudgetExceededError, UnpricedCallError
from pytest_hfbudget.ledger import Scope
from pytest_hfbudget.metering.limit import Manner, most
from pytest_hfbudget.pricing import CallRequest, Catalogue, Quote, UnboundedCallError
from pytest_hfbudget.pricing.book import DEDICATED_HOST, toml_hint


def bounds(
    request: CallRequest, quote: Quote, manner: Manner, catalogue: Catalogue
) -> tuple[int, int]:
    """The least and the most nano-USD that a call may hold.

    Raises:
        UnpricedCallError: its price says nothing of what it can cost.
        BudgetExceededError: nothing says how much a server will write that takes no limit.
    """
    if quote.free:
        return 0, 0
    if request.unreadable:
        raise BudgetExceededError(
            f"{request.unreadable}, so no cap can hold the call to {request.model}. "
            "The call was not sent. Give it a whole number.",
            model=request.model,
        )
    try:
        if request.max_output is not None or not request.generates:
            fixed = quote.most(request, request.max_output or 0)
            return fixed, fixed
        least, highest = quote.most(request, 1), most(request, quote, catalogue)
        if manner.limit_name is None:
            return _without_limit(request, highest, catalogue)
        return least, max(least, highest)
    except UnboundedCallError as error:
        raise UnpricedCallError(
            f"{error}, so no cap can hold it. The call was not sent. Add a price that does:\n\n"
            f"{toml_hint(request)}\n",
            model=request.model,
        ) from None


def _without_limit(request: CallRequest, highest: int, catalogue: Catalogue) -> tuple[int, int]:
    """The bound of a call to a server that takes no limit: what fills the context."""
    if catalogue.contexts(request.model, request.provider).longest:
        return highest, highest
    raise BudgetExceededError(
        f"{request.model} takes no limit on its output, and nobody says how long its context "
        "is, so no cap can hold the call. It was refused by the server and not sent again. "
        "Give the limit in the way that this server knows, or a price by the call.",
        model=request.model,
    )


def unpriced(request: CallRequest, scopes: tuple[Scope, ...]) -> UnpricedCallError:
    """The refusal of a call under a cap of which nobody knows the price."""
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


def _endpoint_hint(request: CallRequest) -> str:
    if DEDICATED_HOST not in request.url:
        return ""
    return (
        "\nIt is a dedicated endpoint. With @pytest.mark.hf_endpoint("
        '"namespace/name") its price is its uptime, and it is paused at the end.\n'
    )
