"""What a client of huggingface_hub has to be like for its calls to be seen, found in its code."""

from __future__ import annotations

import functools
import inspect
import logging
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from importlib import import_module
from importlib.machinery import PathFinder
from types import CodeType, ModuleType
from typing import Any

from pytest_hfbudget.errors import ConfigError

logger = logging.getLogger("pytest_hfbudget")

PACKAGE = "huggingface_hub"
CLIENTS = ("InferenceClient", "AsyncInferenceClient")
CHOKE_POINT = "_inner_post"
KNOWN_SIGNATURE = ("self", "request_parameters", "stream")
# They send nothing that is paid for.
NO_TASKS = frozenset(
    {"close", "get_endpoint_info", "get_model_status", "health_check", "list_deployed_models"}
)


def has_choke_point(client: Any) -> bool:
    """Whether a client has the method that all paid calls are known to pass through."""
    method = getattr(client, CHOKE_POINT, None)
    return method is not None and tuple(inspect.signature(method).parameters) == KNOWN_SIGNATURE


def bypassing(client: type) -> dict[str, Callable[..., Any]]:
    """The public methods of a client that may send something without passing through there.

    A method passes through if its code names the choke point, or another method that does. A
    wrapper of another library is left alone: it will call what it wraps.
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


def guarded(
    original: Any, what: str, capped: Callable[[], bool], missed: Callable[[str], object]
) -> Any:
    """A public method whose calls can't be seen: refused under a cap, else warned of, once."""
    warned: list[str] = []

    @functools.wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        if capped():
            raise ConfigError(f"{what} Under a cap it is not called.")
        missed(what)
        if not warned:
            warned.append(what)
            logger.warning("%s It is not counted.", what)
        return original(self, *args, **kwargs)

    return method


def absent(package: ModuleType, modules: Sequence[str]) -> str | None:
    """The first of these modules that a package does not have, found without importing any."""
    for module in modules:
        path, name = getattr(package, "__path__", None), package.__name__
        if path is None:
            return None  # a stand-in of a test
        for part in module.removeprefix(f"{name}.").split("."):
            name = f"{name}.{part}"
            spec = PathFinder.find_spec(name, path)
            if spec is None:
                return module
            path = spec.submodule_search_locations or ()
    return None


def gap(modules: Sequence[str], wrapped: Collection[type]) -> str | None:
    """What of huggingface_hub, once it is imported, calls could be sent by and is not wrapped.

    It imports the modules, which has their clients wrapped. Then the clients that
    everybody gets have to be those.
    """
    package = sys.modules.get(PACKAGE)
    if not hasattr(package, "__path__"):
        return None  # it is not there, or a stand-in of a test is
    for module in modules:
        if module in sys.modules:
            continue
        try:
            import_module(module)
        except ModuleNotFoundError as error:
            if (error.name or "").startswith(PACKAGE):
                return module
            return None  # it needs a package that is not installed, so no client can be made
    for name in CLIENTS:
        client = getattr(package, name, None)
        if client is None:
            return f"{PACKAGE}.{name}"
        # A stand-in of a test sends nothing by itself.
        genuine = isinstance(client, type) and client.__module__.startswith(f"{PACKAGE}.")
        if genuine and not any(each in wrapped for each in client.__mro__):
            return f"{client.__module__}.{name}"
    return None


def problem(part: str) -> str:
    """What to say where a part of huggingface_hub is not the one which is known."""
    return (
        f"huggingface_hub {_release()} sends its calls in a way that pytest-hfbudget does not "
        f"know ({part}), so it can't cap them. Install a release that is supported "
        "(0.34 to 2.4), or a newer pytest-hfbudget."
    )


def bypassed(client: str, method: str) -> str:
    """What to say of a method whose calls can't be seen, while those of the others can."""
    return (
        f"{client}.{method} of huggingface_hub {_release()} does not send by {client}."
        f"{CHOKE_POINT}, so pytest-hfbudget can't see what it costs."
    )


def _release() -> str:
    return str(getattr(sys.modules.get(PACKAGE), "__version__", "of an unknown release"))


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
