"""`budget()`: a cap around a block of code; the marker takes the same arguments."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from types import TracebackType
from typing import TYPE_CHECKING, Any

from pytest_hfbudget.errors import BudgetExceededError, ConfigError
from pytest_hfbudget.ledger.scope import Scope
from pytest_hfbudget.money import parse_rate, parse_usd, show, to_usd
from pytest_hfbudget.pricing.quote import Quote

if TYPE_CHECKING:
    from pytest_hfbudget.ledger import Charge, Totals
    from pytest_hfbudget.metering.runtime import Runtime

ON_EXCEED = ("fail", "raise")
SCOPES = ("test", "class", "module", "package", "session")

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Terms:
    """The arguments of a marker or a block, checked; money in nano-USD."""

    cap: int | None
    name: str | None
    max_calls: int | None
    explicit: Quote | None
    on_exceed: str
    scope: str


def terms(
    max_usd: object = None,
    *,
    name: str | None = None,
    warn_at: float | None = None,
    max_calls: int | None = None,
    price: Mapping[str, Any] | None = None,
    price_per_1k_tokens: Mapping[str, Any] | None = None,
    fallback: Mapping[str, Any] | None = None,
    on_exceed: str = "fail",
    scope: str = "test",
) -> Terms:
    """Check the arguments that marker and block share.

    Raises:
        ConfigError: one line that names the argument.
        TypeError: an argument that does not exist.
    """
    for given, argument in ((warn_at, "warn_at"), (fallback, "fallback")):
        if given is not None:
            raise ConfigError(f"budget({argument}=…) is not available in this version")
    if on_exceed not in ON_EXCEED:
        raise ConfigError(f"budget(on_exceed={on_exceed!r}): write one of {', '.join(ON_EXCEED)}")
    if scope not in SCOPES:
        raise ConfigError(f"budget(scope={scope!r}): write one of {', '.join(SCOPES)}")
    if max_calls is not None and (isinstance(max_calls, bool) or not _whole(max_calls)):
        raise ConfigError(f"budget(max_calls={max_calls!r}): write a whole number, 0 or more")
    return Terms(
        _cap(max_usd), name, max_calls, _explicit(price, price_per_1k_tokens), on_exceed, scope
    )


def _whole(value: object) -> bool:
    return isinstance(value, int) and value >= 0


def _cap(max_usd: object) -> int | None:
    if max_usd is None:
        return None
    try:
        return parse_usd(max_usd)
    except ValueError as error:
        raise ConfigError(f"budget(max_usd={max_usd!r}): {error}") from None


def _explicit(price: object, per_1k: object) -> Quote | None:
    from pytest_hfbudget.pricing.table import parse_price

    if price is not None and per_1k is not None:
        raise ConfigError("budget(): give either price or price_per_1k_tokens, not both")
    if price is not None:
        return Quote.of(parse_price(price, "budget(price=…)"), "budget(price=…)")
    return None if per_1k is None else _per_1k(per_1k)


def _per_1k(rates: object) -> Quote:
    from pytest_hfbudget.pricing.price import Price

    where = "budget(price_per_1k_tokens=…)"
    if not isinstance(rates, Mapping) or set(rates) != {"input", "output"}:
        raise ConfigError(f'{where}: write {{"input": 0.001, "output": 0.001}}')
    try:
        rate_in, rate_out = (parse_rate(rates[key], units=1000) for key in ("input", "output"))
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None
    return Quote.of(Price(input=rate_in, output=rate_out), where)


class budget:
    """Cap what a block of code may spend, and count what it did.

    Works as ``with`` and ``async with``, nested, and again after it was left (it adds up). Every
    call must fit into every budget around it; one that does not is never sent. A refusal that
    the code inside swallowed is raised again at the end of the block, unless
    ``on_exceed="raise"`` leaves it to that code.

    Args:
        max_usd: the cap, inclusive; None counts without a cap of its own.
        name: how messages and reports call it.
        max_calls: the most calls that may be sent.
        price: USD per 1M tokens (``input``, ``output``, ``cached``), or each (``call``,
            ``image``, ``second`` with ``max_seconds``); inner blocks inherit it.
        price_per_1k_tokens: ``{"input": USD, "output": USD}`` per 1,000 tokens.
        on_exceed: ``fail`` or ``raise``.

    Raises:
        ConfigError: an argument that makes no sense.
    """

    def __init__(self, max_usd: object = None, **arguments: Any) -> None:
        self._terms = terms(max_usd, **arguments)
        number = next(_numbers)
        self.name = self._terms.name or f"budget {number}"
        self.scope = Scope("", self.name, self._terms.cap, self._terms.max_calls)
        self.explicit = self._terms.explicit
        self.refusals: list[BudgetExceededError] = []
        self._number = number
        self._runtime: Runtime | None = None

    def __enter__(self) -> budget:
        from pytest_hfbudget.metering.runtime import runtime

        if self._runtime is None or not self._runtime.active:
            self._runtime = runtime()
            self.scope = self.scope._replace(key=f"{self._runtime.worker}block:{self._number}")
        self._runtime.acquire()
        if self.scope.cap is not None or self.scope.max_calls is not None:
            self._require_tap()
        self._runtime.meter.payer.enter(self)
        return self

    def _require_tap(self) -> None:
        assert self._runtime is not None  # noqa: S101 - its only caller has just set it
        try:
            self._runtime.require_tap()
        except ConfigError:
            self._runtime.release()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._runtime is None:
            raise RuntimeError(f"{self.name} was left before it was entered")
        self._runtime.meter.drain()
        self._runtime.meter.payer.leave(self)
        self._runtime.release()
        refusals, self.refusals = self.refusals, []
        if refusals and self._terms.on_exceed == "fail":
            if error is None:
                raise refusals[0]
            self._runtime.meter.pass_on(refusals, error)

    async def __aenter__(self) -> budget:
        return self.__enter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.__exit__(kind, error, traceback)

    @property
    def spent(self) -> Decimal:
        """USD charged so far, by everything inside this block."""
        return to_usd(self._totals().spent)

    @property
    def limit(self) -> Decimal | None:
        """The cap in USD, None without one."""
        return None if self.scope.cap is None else to_usd(self.scope.cap)

    @property
    def remaining(self) -> Decimal | None:
        """USD that is neither spent nor held, None without a cap."""
        totals = self._totals()
        cap = self.scope.cap
        return None if cap is None else to_usd(max(cap - totals.spent - totals.held, 0))

    @property
    def calls_used(self) -> int:
        """Calls that were sent and settled."""
        return self._totals().calls

    @property
    def calls(self) -> tuple[Charge, ...]:
        """Every settled call of this block, in order. Money in them is nano-USD."""
        if self._runtime is None:
            return ()
        self._runtime.meter.drain()
        return self._runtime.meter.ledger.charges_in(self.scope.key)

    def _totals(self) -> Totals:
        from pytest_hfbudget.ledger import Totals

        if self._runtime is None:
            return Totals()
        self._runtime.meter.drain()
        return self._runtime.meter.ledger.total(self.scope.key)

    def __repr__(self) -> str:
        totals = self._totals()
        cap = "no cap" if self.scope.cap is None else show(self.scope.cap)
        calls = "1 call" if totals.calls == 1 else f"{totals.calls} calls"
        return f"<budget {self.name!r}: {show(totals.spent)} of {cap}, {calls}>"
