"""`with_budget()`: a budget for each call of a function."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Callable, Generator
from typing import Any, TypeVar, cast

from pytest_hfbudget.metering.budget import budget
from pytest_hfbudget.metering.terms import terms

F = TypeVar("F", bound=Callable[..., Any])


def with_budget(max_usd: object = None, **arguments: Any) -> Callable[[F], F]:
    """Put every call of a function into a `budget()` block of its own.

    For functions, coroutine functions, generators and async generators. The budget of a generator
    holds while it runs, not while its consumer does.

    Args:
        max_usd, arguments: those of `budget()`.

    Raises:
        ConfigError: an argument that makes no sense, where the function is decorated.
    """
    budget(max_usd, **arguments)

    def decorate(function: F) -> F:
        name = terms(max_usd, **arguments).name or function.__qualname__

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
                with one:  # for this step only: between two of them other code runs
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
