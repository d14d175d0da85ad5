"""`budget()`: a cap around a block of code; the marker takes the same arguments."""

from __future__ import annotations

import functools
import inspect
import itertools
import warnings
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from decimal import Decimal
from itertools import takewhile
from typing import TYPE_CHECKING, Any, TypeVar, cast

from pytest_hfbudget.errors import BudgetExceededError, ConfigError, HFBudgetError, HFBudgetWarning
from pytest_hfbudget.ledger import Charge, Scope, Totals
from pytest_hfbudget.metering.budget_args import budget_args, thresholds
from pytest_hfbudget.money import beside, show, to_usd

if TYPE_CHECKING:
    from pytest_hfbudget.metering.budget_args import Threshold
    from pytest_hfbudget.metering.runtime import Runtime


_numbers = itertools.count(1)


class budget:
    """Cap what a block of code may spend, and count what it did.

    Works as ``with`` and ``async with``, nested, and again after it was left (it adds up). Every
    call must fit into every budget around it; one that does not is never sent. A refusal that
    the code inside swallowed is raised again at the end of the block, unless
    ``on_exceed="raise"`` leaves it to that code.

    Args:
        max_usd: the cap, inclusive; None counts without a cap of its own.
        name: how messages and reports call it.
        warn_at: a part of the cap, from 0 to 1; an `HFBudgetWarning` says once that as much is
            spent. It is raised at the end of the block, so that ``-W error`` costs no answer.
        max_calls: the most calls that may be sent.
        price: USD per 1M tokens (``input``, ``output``, ``cached``), or each (``call``,
            ``image``, ``second`` with ``max_seconds``); inner blocks inherit it.
        price_per_1k_tokens: ``{"input": USD, "output": USD}`` per 1,000 tokens.
        fallback: ``{"at_pct": 0.8, "model": "org/model"}``: from that part of the cap on calls
            are sent with this model.
        on_exceed: ``fail`` or ``raise``.

    Raises:
        ConfigError: an argument is invalid.
    """

    def __init__(self, max_usd: object = None, **arguments: Any) -> None:
        self._args = budget_args(max_usd, **arguments)
        number = next(_numbers)
        self.name = self._args.name or f"budget {number}"
        self.scope = Scope("", self.name, self._args.cap, self._args.max_calls)
        self.explicit = self._args.explicit
        self.thresholds = self._thresholds()
        self.refusals: list[BudgetExceededError] = []
        self._number = number
        self._runtime: Runtime | None = None
        self._elsewhere: tuple[Charge, ...] = ()

    def __enter__(self) -> budget:
        from pytest_hfbudget.metering.runtime import runtime

        used = runtime(self._runtime)
        self._move_to(used)
        used.acquire()
        if self.scope.cap is not None or self.scope.max_calls is not None:
            try:
                used.require_hub()
            except ConfigError:
                used.release()
                raise
        used.meter.budgets.enter(self)
        return self

    def _move_to(self, found: Runtime) -> None:
        """Use this runtime. What another one has charged to the block is taken off its limits."""
        if found is self._runtime:
            return
        with suppress(HFBudgetError):  # the ledger of a run that is over can't be asked
            self._elsewhere = self.calls
        cap, most = self._args.cap, self._args.max_calls
        self.scope = self.scope._replace(
            key=f"{found.worker}block:{self._number}",
            cap=None if cap is None else max(cap - self._spent_elsewhere, 0),
            max_calls=None if most is None else max(most - len(self._elsewhere), 0),
        )
        self._runtime, self.thresholds = found, self._thresholds()

    @property
    def _spent_elsewhere(self) -> int:
        return sum(charge.nano_usd or 0 for charge in self._elsewhere)

    def _thresholds(self) -> tuple[Threshold, ...]:
        return thresholds(self.scope, self._args.warn_at, self._args.fallback)

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if self._runtime is None:
            raise RuntimeError(f"{self.name} was left before it was entered")
        try:
            self._runtime.meter.drain()
        finally:  # a Ctrl-C does not leave the block open
            self._runtime.meter.budgets.leave(self)
            self._runtime.release()
        refusals, self.refusals = self.refusals, []
        notices = self._runtime.meter.watcher.take(self.scope.key)
        if refusals and not self.leaves_refusals:
            if error is None:
                _warn(notices, suppress(HFBudgetWarning))
                raise refusals[0]
            self._runtime.meter.pass_on(refusals, error)
        _warn(notices, nullcontext() if error is None else suppress(HFBudgetWarning))

    async def __aenter__(self) -> budget:
        return self.__enter__()

    async def __aexit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self.__exit__(kind, error, traceback)

    @property
    def leaves_refusals(self) -> bool:
        """Whether it leaves refusals to the code inside of it, which may catch them."""
        return self._args.on_exceed == "raise"

    @property
    def spent(self) -> Decimal:
        """USD charged so far, by everything inside this block."""
        return to_usd(self._totals().spent)

    @property
    def limit(self) -> Decimal | None:
        """The cap in USD, None without one."""
        return None if self._args.cap is None else to_usd(self._args.cap)

    @property
    def remaining(self) -> Decimal | None:
        """USD that is neither spent nor held, None without a cap."""
        totals = self._totals()
        cap = self._args.cap
        return None if cap is None else to_usd(max(cap - totals.spent - totals.held, 0))

    @property
    def calls_used(self) -> int:
        """Calls that were sent and settled."""
        return self._totals().calls

    @property
    def calls_remaining(self) -> int | None:
        """Calls that ``max_calls`` leaves, None without it."""
        most = self._args.max_calls
        return None if most is None else max(most - self._totals().calls, 0)

    @property
    def model_switched(self) -> bool:
        """Whether a call was sent with the model of a fallback."""
        return any(charge.instead_of for charge in self.calls)

    @property
    def switched_at_usd(self) -> Decimal | None:
        """USD spent before the first call with the model of a fallback, None without one."""
        return spent_before_switch(self.calls)

    @property
    def fallback_spent(self) -> Decimal:
        """USD charged for calls with the model of a fallback."""
        return spent_on_fallback(self.calls)

    def summary(self) -> str:
        """What was spent, in lines for people: the budget, then each model."""
        return summary_text(self.name, self.calls, cap=self._args.cap)

    def summary_data(self) -> dict[str, Any]:
        """What was spent, as plain data; money in USD, as `Decimal`."""
        return summary_data(self.calls, cap=self._args.cap, spent=self._totals().spent)

    @property
    def calls(self) -> tuple[Charge, ...]:
        """Every settled call of this block, in order. Money in them is nano-USD."""
        if self._runtime is None:
            return ()
        self._runtime.meter.drain()
        return (*self._elsewhere, *self._runtime.meter.ledger.charges_in(self.scope.key))

    def _totals(self) -> Totals:
        if self._runtime is None:
            return Totals()
        self._runtime.meter.drain()
        here, elsewhere = self._runtime.meter.ledger.total(self.scope.key), self._elsewhere
        return here._replace(
            spent=here.spent + self._spent_elsewhere, calls=here.calls + len(elsewhere)
        )

    def __repr__(self) -> str:
        totals = self._totals()
        spent, cap, *_ = (*beside(self._args.cap, totals.spent), "no cap")
        return f"<budget {self.name!r}: {spent} of {cap}, {_calls(totals.calls)}>"


def _warn(notices: list[str], guarded: AbstractContextManager[None]) -> None:
    """Raise the warnings; ``guarded`` suppresses them while another error is raised."""
    with guarded:
        for text in notices:
            warnings.warn(text, HFBudgetWarning, stacklevel=3)


def spent_before_switch(calls: Iterable[Charge]) -> Decimal | None:
    """USD spent before the first call with the model of a fallback, None without one."""
    calls = tuple(calls)
    before = tuple(takewhile(lambda charge: not charge.instead_of, calls))
    return None if len(before) == len(calls) else to_usd(_cost(before))


def spent_on_fallback(calls: Iterable[Charge]) -> Decimal:
    """USD charged for calls with the model of a fallback."""
    return to_usd(_cost(charge for charge in calls if charge.instead_of))


def summary_data(calls: Sequence[Charge], *, cap: int | None, spent: int) -> dict[str, Any]:
    """Totals, every call, and totals of each model. Money is USD, as `Decimal`.

    Args:
        cap, spent: in nano-USD.
    """
    switched = [charge for charge in calls if charge.instead_of]
    return {
        "total_spent": to_usd(spent),
        "limit": None if cap is None else to_usd(cap),
        "model_switched": bool(switched),
        "switched_at_usd": spent_before_switch(calls),
        "fallback_model": switched[0].model if switched else None,
        "fallback_spent": spent_on_fallback(calls),
        "total_calls": len(calls),
        "calls": [_call(charge) for charge in calls],
        "by_model": {
            model: {
                "calls": len(charges),
                "cost": to_usd(_cost(charges)),
                "input_tokens": sum(charge.input_tokens for charge in charges),
                "output_tokens": sum(charge.output_tokens for charge in charges),
            }
            for model, charges in _by_model(calls).items()
        },
    }


def summary_text(name: str, calls: Sequence[Charge], *, cap: int | None) -> str:
    """The budget in a line, then a line for each model.

    Args:
        cap: in nano-USD.
    """
    spent, limit, *_ = (*beside(cap, _cost(calls)), "no cap")
    lines = [f"{name}: {spent} of {limit}, {_calls(len(calls))}"]
    models = _by_model(calls)
    width = max(map(len, models), default=0)
    for model, charges in models.items():
        tokens_in = sum(charge.input_tokens for charge in charges)
        tokens_out = sum(charge.output_tokens for charge in charges)
        lines.append(
            f"  {model:<{width}}  {show(_cost(charges))}, {_calls(len(charges))}, "
            f"{tokens_in} tokens in, {tokens_out} out"
        )
    if switched := [charge for charge in calls if charge.instead_of]:
        lines.append(
            f"  {_calls(len(switched))} with {switched[0].model} instead of "
            f"{switched[0].instead_of}: {show(_cost(switched))}"
        )
    return "\n".join(lines)


def _call(charge: Charge) -> dict[str, Any]:
    return {
        "model": charge.model,
        "instead_of": charge.instead_of or None,
        "task": charge.task,
        "cost": None if charge.nano_usd is None else to_usd(charge.nano_usd),
        "input_tokens": charge.input_tokens,
        "output_tokens": charge.output_tokens,
        "status": charge.status,
        "estimated": charge.estimated,
    }


def _by_model(calls: Iterable[Charge]) -> dict[str, list[Charge]]:
    models: dict[str, list[Charge]] = {}
    for charge in calls:
        models.setdefault(charge.model, []).append(charge)
    return models


def _cost(charges: Iterable[Charge]) -> int:
    return sum(charge.nano_usd or 0 for charge in charges)


def _calls(count: int) -> str:
    return "1 call" if count == 1 else f"{count} calls"


F = TypeVar("F", bound=Callable[..., Any])


def with_budget(max_usd: object = None, **arguments: Any) -> Callable[[F], F]:
    """Put every call of a function into a `budget()` block of its own.

    For functions, coroutine functions, generators and async generators. The budget of a generator
    holds while it runs, not while its consumer does.

    Args:
        max_usd, arguments: those of `budget()`.

    Raises:
        ConfigError: an argument is invalid; raised where the function is decorated.
    """
    budget(max_usd, **arguments)

    def decorate(function: F) -> F:
        name = budget_args(max_usd, **arguments).name or function.__qualname__

        def block() -> budget:
            return budget(max_usd, **{**arguments, "name": name})

        return cast("F", functools.wraps(function)(_kind(function)(function, block)))

    return decorate


def _kind(function: Callable[..., Any]) -> Callable[..., Any]:
    if inspect.isasyncgenfunction(function):
        return _async_generator
    if inspect.isgeneratorfunction(function):
        return _generator
    return _coroutine if inspect.iscoroutinefunction(function) else _plain


def _plain(function: Callable[..., Any], block: Callable[[], budget]) -> Callable[..., Any]:
    def capped(*args: Any, **kwargs: Any) -> Any:
        with block():
            return function(*args, **kwargs)

    return capped


def _coroutine(function: Callable[..., Any], block: Callable[[], budget]) -> Callable[..., Any]:
    async def capped(*args: Any, **kwargs: Any) -> Any:
        async with block():
            return await function(*args, **kwargs)

    return capped


def _generator(function: Callable[..., Any], block: Callable[[], budget]) -> Callable[..., Any]:
    def capped(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        one, steps, sent = block(), function(*args, **kwargs), None
        try:
            while True:
                with one:  # for this step only, because other code runs between two steps
                    try:
                        item = steps.send(sent)
                    except StopIteration as end:
                        return end.value
                sent = yield item
        finally:
            with one:
                steps.close()

    return capped


def _async_generator(
    function: Callable[..., Any], block: Callable[[], budget]
) -> Callable[..., Any]:
    async def capped(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        one, steps, sent = block(), function(*args, **kwargs), None
        try:
            while True:
                async with one:
                    try:
                        item = await steps.asend(sent)
                    except StopAsyncIteration:
                        return
                sent = yield item
        finally:
            async with one:
                await steps.aclose()

    return capped
