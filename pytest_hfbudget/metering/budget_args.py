"""Checks the arguments that a marker and a block share, and watches the thresholds they set."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from typing import Any, NamedTuple

from pytest_hfbudget.errors import ConfigError, HFBudgetError
from pytest_hfbudget.ledger import LedgerLike, Scope, Totals
from pytest_hfbudget.locks import own_lock
from pytest_hfbudget.money import beside, parse_rate, parse_usd
from pytest_hfbudget.pricing import Quote

ON_EXCEED = ("fail", "raise")
SCOPES = ("test", "class", "module", "package", "session")


@dataclass(frozen=True)
class Fallback:
    """The model that calls are sent with once the part ``at`` of a budget is used up."""

    at: Fraction
    model: str


@dataclass(frozen=True)
class BudgetArgs:
    """The arguments of a marker or a block, checked; money in nano-USD."""

    cap: int | None
    name: str | None
    max_calls: int | None
    explicit: Quote | None
    on_exceed: str | None
    scope: str
    warn_at: Fraction | None = None
    fallback: Fallback | None = None


def budget_args(
    max_usd: object = None,
    *,
    name: str | None = None,
    warn_at: object = None,
    max_calls: int | None = None,
    price: Mapping[str, Any] | None = None,
    price_per_1k_tokens: Mapping[str, Any] | None = None,
    fallback: Mapping[str, Any] | None = None,
    on_exceed: str | None = None,
    scope: str = "test",
    **unknown: object,
) -> BudgetArgs:
    """Check the arguments that marker and block share, and return them.

    Raises:
        ConfigError: an argument has an invalid value; the message is one line.
        TypeError: an argument does not exist.
    """
    if unknown:
        from difflib import get_close_matches  # takes a millisecond that only an error needs

        name, known = next(iter(unknown)), [*budget_args.__annotations__][:-2]
        near = get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]}?" if near else f"it takes {', '.join(known)}"
        raise TypeError(f"budget() has no argument {name!r}; {hint}")
    if on_exceed not in (None, *ON_EXCEED):
        raise ConfigError(f"budget(on_exceed={on_exceed!r}): write one of {', '.join(ON_EXCEED)}")
    if scope not in SCOPES:
        raise ConfigError(f"budget(scope={scope!r}): write one of {', '.join(SCOPES)}")
    if max_calls is not None and (isinstance(max_calls, bool) or not _whole(max_calls)):
        raise ConfigError(f"budget(max_calls={max_calls!r}): write a whole number, 0 or more")
    return BudgetArgs(
        cap=_cap(max_usd),
        name=name,
        max_calls=max_calls,
        explicit=_explicit(price, price_per_1k_tokens),
        on_exceed=on_exceed,
        scope=scope,
        warn_at=None if warn_at is None else _part(warn_at, f"warn_at={warn_at!r}"),
        fallback=None if fallback is None else _fallback(fallback),
    )


def thresholds(
    scope: Scope, warn_at: Fraction | None, fallback: Fallback | None
) -> tuple[Threshold, ...]:
    """The warning and the fallback of a budget, as thresholds.

    Raises:
        ConfigError: the budget has no limit of which a part could be used up.
    """
    if warn_at is None and fallback is None:
        return ()
    if scope.cap is None and scope.max_calls is None:
        argument = "fallback" if warn_at is None else "warn_at"
        raise ConfigError(f"budget({argument}=…) needs a limit: give max_usd or max_calls, too")
    warning = () if warn_at is None else (Threshold(scope, warn_at),)
    cheaper = () if fallback is None else (Threshold(scope, fallback.at, fallback.model),)
    return (*warning, *cheaper)


def _whole(value: object) -> bool:
    return isinstance(value, int) and value >= 0


def _part(value: object, argument: str) -> Fraction:
    """A part of a limit, exactly as it was written: 0.8 is 4/5."""
    number = isinstance(value, (int, float, Decimal, Fraction)) and not isinstance(value, bool)
    try:
        part = Fraction(str(value)) if number else Fraction(-1)
    except ValueError:  # NaN, infinite
        part = Fraction(-1)
    if not 0 <= part <= 1:
        raise ConfigError(f"budget({argument}): write a part of the limit from 0 to 1, such as 0.8")
    return part


def _fallback(given: object) -> Fallback:
    if not isinstance(given, Mapping) or set(given) != {"at_pct", "model"}:
        raise ConfigError('budget(fallback=…): write {"at_pct": 0.8, "model": "org/model"}')
    model = given["model"]
    if not isinstance(model, str) or not model or "://" in model:
        raise ConfigError(f'budget(fallback={{"model": {model!r}}}): write the Hub id of a model')
    at = given["at_pct"]
    return Fallback(_part(at, f'fallback={{"at_pct": {at!r}}}'), model)


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
    from pytest_hfbudget.pricing import Price

    where = "budget(price_per_1k_tokens=…)"
    if not isinstance(rates, Mapping) or set(rates) != {"input", "output"}:
        raise ConfigError(f'{where}: write {{"input": 0.001, "output": 0.001}}')
    try:
        rate_in, rate_out = (parse_rate(rates[key], units=1000) for key in ("input", "output"))
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None
    return Quote.of(Price(input=rate_in, output=rate_out), where)


class Threshold(NamedTuple):
    """A part of a budget's cap, or of its calls, and what happens once it is used up.

    Attributes:
        model: the model that calls are sent with from then on; empty for a warning.
    """

    scope: Scope
    part: Fraction
    model: str = ""

    def reached(self, totals: Totals) -> bool:
        """Whether this part of the cap, or of the calls, is used up."""
        cap, calls = self.scope.cap, self.scope.max_calls
        spent_it = cap is not None and totals.spent >= self.part * cap
        return spent_it or (calls is not None and totals.calls >= self.part * calls)

    def text(self, totals: Totals) -> str:
        """The text of the warning, with what is used of each limit."""
        cap, calls = self.scope.cap, self.scope.max_calls
        used = [] if cap is None else ["{} of {} spent".format(*beside(cap, totals.spent))]
        used += [] if calls is None else [f"{totals.calls} of {calls} calls made"]
        return f"{self.scope.name}: {', '.join(used)} (warn_at={float(self.part):g})"


class Notice(NamedTuple):
    """A warning that is kept until raising it can't cost the caller a paid answer."""

    scope_key: str
    text: str


class WarnedOnce:
    """Returns True for each key the first time, and False from then on."""

    def __init__(self) -> None:
        self._lock = own_lock()
        self._keys: set[str] = set()

    def __call__(self, key: str) -> bool:
        with self._lock:
            fresh = key not in self._keys
            self._keys.add(key)
            return fresh


@dataclass
class ThresholdWatcher:
    """Checks thresholds after each settlement, and keeps the warnings.

    Attributes:
        claim: returns whether no process of the run has asked for a key before; workers ask their
            controller.
    """

    claim: Callable[[str], bool] = field(default_factory=WarnedOnce)
    _notices: list[Notice] = field(default_factory=list)

    def settled(self, thresholds: Sequence[Threshold], ledger: LedgerLike) -> None:
        """Add a warning for each budget whose threshold is reached."""
        for threshold in thresholds:
            # A ledger that is gone refuses the next call, which says so better than a warning.
            with suppress(HFBudgetError):
                if not threshold.model:
                    totals = ledger.total(threshold.scope.key)
                    if threshold.reached(totals):
                        self.warn(threshold.scope, "warn_at", threshold.text(totals))

    def due(self, thresholds: Sequence[Threshold], ledger: LedgerLike) -> Threshold | None:
        """The innermost fallback that is due, if any is."""
        for threshold in reversed(thresholds):
            if threshold.model and threshold.reached(ledger.total(threshold.scope.key)):
                return threshold
        return None

    def warn(self, scope: Scope, matter: str, text: str) -> None:
        """Add a warning, unless the run has had one of this matter and budget before."""
        if self.claim(f"{matter}:{scope.key}"):
            self._notices.append(Notice(scope.key, text))

    def take(self, scope_key: str | None = None) -> list[str]:
        """Remove the warnings of one budget, or of all, and return them."""
        taken = []
        for notice in tuple(self._notices):
            if scope_key in (None, notice.scope_key):
                with suppress(ValueError):  # another thread has taken it
                    self._notices.remove(notice)
                    taken.append(notice.text)
        return taken
