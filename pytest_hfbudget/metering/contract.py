"""What a client of huggingface_hub has to be like for its calls to be seen, found in its code."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from importlib.metadata import version
from types import CodeType
from typing import Any

CHOKE_POINT = "_inner_post"
KNOWN_SIGNATURE = ("self", "request_parameters", "stream")
# They send nothing that is paid for.
NO_TASKS = frozenset({"close", "get_endpoint_info", "health_check"})


def has_choke_point(client: Any) -> bool:
    """Whether a client has the method that all paid calls are known to pass through."""
    method = getattr(client, CHOKE_POINT, None)
    return method is not None and tuple(inspect.signature(method).parameters) == KNOWN_SIGNATURE


def bypassing(client: type) -> dict[str, Callable[..., Any]]:
    """The public methods of a client that may send something without passing through there.

    A method passes through if its code names the choke point, or another method that does. What
    somebody else has put in its place is left alone: it will call what it stands for.
    """
    methods = {
        name: method
        for name, method in vars(client).items()
        if inspect.isfunction(method) and not name.startswith("_") and name not in NO_TASKS
        if method.__module__ == client.__module__
    }
    names = {name: set(_names(inspect.unwrap(method).__code__)) for name, method in methods.items()}
    passing = {CHOKE_POINT}
    while more := {name for name, used in names.items() if used & passing} - passing:
        passing |= more
    return {name: method for name, method in methods.items() if name not in passing}


def problem(client: str, method: str) -> str:
    """What to say of a method that is not the one which is known."""
    return (
        f"huggingface_hub {version('huggingface_hub')} sends its calls in a way that "
        f"pytest-hfbudget does not know ({client}.{method}), so it can't cap them. "
        "Install a release that is supported (0.34 to 2.4), or a newer pytest-hfbudget."
    )


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
