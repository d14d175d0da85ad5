"""The one place that knows how huggingface_hub sends a paid call.

Every task of both clients passes through ``_inner_post``, in every release since 0.28, while the
HTTP library below it changed twice (requests, httpx, httpx2). This file alone names those modules,
and waits until others import them. What a call goes through is in `calls`, for the first call.
"""

from __future__ import annotations

import functools
import inspect
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.machinery import PathFinder
from types import CodeType, ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from pytest_hfbudget.errors import ConfigError
from pytest_hfbudget.locks import off_loop
from pytest_hfbudget.metering.instrumentation import Patches
from pytest_hfbudget.metering.instrumentation.http_layer import HttpLayer
from pytest_hfbudget.metering.transport_probe import TransportProbe, headers_listener
from pytest_hfbudget.text import Headers

if TYPE_CHECKING:
    from pytest_hfbudget.metering.meter import Meter

logger = logging.getLogger("pytest_hfbudget")

PACKAGE = "huggingface_hub"
SYNC = "huggingface_hub.inference._client"
ASYNC = "huggingface_hub.inference._generated._async_client"
HELPERS = "huggingface_hub.inference._providers._common"
NEEDED = (SYNC, ASYNC, HELPERS)
CLIENTS = ("InferenceClient", "AsyncInferenceClient")
CHOKE_POINT = "_inner_post"
KNOWN_SIGNATURE = ("self", "request_parameters", "stream")
# They send nothing that is paid for.
NO_TASKS = frozenset(
    {"close", "get_endpoint_info", "get_model_status", "health_check", "list_deployed_models"}
)


class HubInstrumentation:
    """Wraps ``_inner_post`` of both clients while it is installed.

    Attributes:
        meter: the meter that calls go through now; if it is None, the last of `wakers` makes one.
        wakers: each makes the meter of a run for its first call, and sets it here. Without a meter
            and without wakers, calls are not metered.
        around_forks: what the meters do when this process forks.
        problem: why calls can't be seen, if this release of huggingface_hub is not known.
        http: wraps the requests of other clients.
    """

    def __init__(self) -> None:
        self.meter: Meter | None = None
        self.problem = ""
        self.wakers: list[Callable[[], object]] = []
        self.around_forks: list[ForkSteps] = []
        self.probe = TransportProbe()
        self._patches = Patches()
        self._wrapped: list[type] = []
        self.waking = threading.RLock()
        self.http = HttpLayer(self)

    @property
    def in_place(self) -> bool:
        """Whether a client has been imported, so that calls are to be expected."""
        return bool(self._patches)

    def install(self) -> None:
        """Wrap what is imported, and the rest as soon as it is; nothing if that was done before."""
        if self._patches.watching:
            return
        # One watch for all of them, because each watch is asked about every import of a run.
        self._patches.watch(
            {
                **self.probe.import_callbacks(),
                **self.http.import_callbacks(),
                SYNC: self._wrap_sync,
                ASYNC: self._wrap_async,
                HELPERS: self._wrap_helpers,
                PACKAGE: self._look,
            }
        )

    def require(self) -> None:
        """Make sure that the plugin sees the calls of huggingface_hub, if that is imported by now.

        Raises:
            ConfigError: a part of it has moved or changed.
        """
        if not self.problem and (part := self._gap()):
            self.problem = problem(part)
        if self.problem:
            raise ConfigError(self.problem)

    def _look(self, package: ModuleType) -> None:
        """Check huggingface_hub when it is imported: under a cap in full, else in a quick way."""
        if self._is_capped():
            self.require()
        elif part := absent(package):
            self._unknown(part)

    def _gap(self) -> str | None:
        """The first part of huggingface_hub by which calls could pass unseen; None without one.

        It imports the modules, so that their clients are wrapped. Then the clients that users
        import from the package have to be the wrapped ones.
        """
        package = sys.modules.get(PACKAGE)
        if not hasattr(package, "__path__"):
            return None  # it is not there, or a stand-in of a test is
        for module in (each for each in NEEDED if each not in sys.modules):
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
            if genuine and not any(each in self._wrapped for each in client.__mro__):
                return f"{client.__module__}.{name}"
        return None

    @off_loop()  # it imports modules, which blocks, maybe in the event loop of a test
    def wake(self) -> None:
        """Make the meter, if a run has put that off until the first call."""
        with self.waking:
            if self.meter is None and self.wakers:
                self.wakers[-1]()

    def uninstall(self) -> None:
        """Put back all that was not wrapped again since; nothing while a run needs it."""
        if self.meter is not None or self.wakers:
            return
        self._patches.restore()
        self.http.uninstall()
        self.probe.uninstall()
        self._wrapped.clear()
        self.problem = ""

    def _wrap_sync(self, module: ModuleType) -> None:
        def make(original: Any) -> Any:
            from pytest_hfbudget.metering.instrumentation.calls import metered

            return metered(original, self, module)

        self._wrap_client(module, "InferenceClient", make)

    def _wrap_async(self, module: ModuleType) -> None:
        def make(original: Any) -> Any:
            from pytest_hfbudget.metering.instrumentation.calls import metered_async

            return metered_async(original, self)

        self._wrap_client(module, "AsyncInferenceClient", make)

    def _wrap_client(self, module: ModuleType, name: str, make: Callable[[Any], Any]) -> None:
        client = getattr(module, name, None)
        if client is None or not has_choke_point(client):
            self._unknown(f"{name}.{CHOKE_POINT}")
            return
        self._wrapped.append(client)
        for method, original in bypassing(client).items():
            self._patches.replace(client, method, self._guarded(original, name, method))
        self._replace(client, CHOKE_POINT, make)
        make_session = getattr(client, "_get_client_session", None)
        if make_session is not None:  # aiohttp, before 1.0
            self._patches.replace(client, "_get_client_session", traced_session(make_session))
        if (check := getattr(module, "hf_raise_for_status", None)) is not None:
            self._patches.replace(module, "hf_raise_for_status", reporting_headers(check))

    def _is_capped(self) -> bool:
        return self.meter is not None and self.meter.budgets.capped()

    def _guarded(self, original: Any, client: str, name: str) -> Any:
        """Wrap a public method whose calls can't be seen: a cap refuses it, else it is logged."""
        what = (
            f"pytest-hfbudget can't see what {client}.{name} of huggingface_hub {_release()} "
            f"costs, because the method bypasses {client}.{CHOKE_POINT}."
        )
        warned = False

        @functools.wraps(original)
        def method(caller: Any, /, *args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            nonlocal warned
            if self._is_capped():
                advice = "Use another method, or install a newer pytest-hfbudget."
                raise ConfigError(f"{what} The method was not called. {advice}")
            if self.meter is not None:
                self.meter.count_unmetered(what)
            if not warned:
                warned = True
                logger.warning("%s The call is not counted.", what)
            return original(caller, *args, **kwargs)

        return method

    def _wrap_helpers(self, module: ModuleType) -> None:
        def make(original: Any) -> Any:
            from pytest_hfbudget.metering.instrumentation.calls import recording_asked_model

            return recording_asked_model(original, self)

        helper = getattr(module, "TaskProviderHelper", None)
        if hasattr(helper, "prepare_request"):
            self._replace(helper, "prepare_request", make)
        else:
            self._unknown("TaskProviderHelper.prepare_request")

    def _replace(self, owner: Any, name: str, make: Callable[[Any], Any]) -> None:
        """Wrap a method now; without a meter, put that off until its first call."""
        lazily = functools.partial(self._stub, owner, name, make)
        wrap = lazily if self.meter is None else make
        self._patches.replace(owner, name, wrap(getattr(owner, name)))

    def _stub(self, owner: Any, name: str, make: Callable[[Any], Any], original: Any) -> Any:
        """A stub that takes the place of a method. Its first call makes the wrapper of the method.

        Then the wrapper replaces the stub, unless the stub was wrapped by something else.
        """
        made: list[Any] = []

        def wake() -> Any:
            self.wake()
            if not made:
                with off_loop():
                    made.append(make(original))
                if vars(owner).get(name) is stub:
                    setattr(owner, name, made[0])
            return made[0]

        def method(caller: Any, /, *args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            return wake()(caller, *args, **kwargs)

        async def task(caller: Any, /, *args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            return await wake()(caller, *args, **kwargs)

        stub = functools.wraps(original)(task if inspect.iscoroutinefunction(original) else method)
        return stub

    def _unknown(self, part: str) -> None:
        self.problem = problem(part)
        if self._is_capped():
            raise ConfigError(self.problem)
        logger.warning("%s Nothing is counted.", self.problem)


# --- checks of huggingface_hub


def has_choke_point(client: Any) -> bool:
    """Whether a client has the method that all paid calls are known to pass through."""
    method = getattr(client, CHOKE_POINT, None)
    return method is not None and tuple(inspect.signature(method).parameters) == KNOWN_SIGNATURE


def bypassing(client: type) -> dict[str, Callable[..., Any]]:
    """The public methods of a client that may send something without the choke point, by name.

    A method passes the choke point if its code names it, or names another method that does. A
    wrapper by another library is not checked: it will call what it wraps.
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


def absent(package: ModuleType) -> str | None:
    """The first of `NEEDED` that a package does not have, found without importing any; or None."""
    for module in NEEDED:
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


def problem(part: str) -> str:
    """The message for a part of huggingface_hub that has moved or changed."""
    return (
        f"huggingface_hub {_release()} sends its calls in a way that pytest-hfbudget does not "
        f"know ({part}), so it can't cap them. Install a release that is supported "
        "(0.34 to 2.4), or a newer pytest-hfbudget."
    )


def _release() -> str:
    return str(getattr(sys.modules.get(PACKAGE), "__version__", "of an unknown release"))


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def reporting_headers(original: Any) -> Any:
    """Wrap ``hf_raise_for_status``, which gets each response: its headers say who answered."""

    @functools.wraps(original)
    def hf_raise_for_status(response: Any, *args: Any, **kwargs: Any) -> Any:
        listener = headers_listener()
        if listener is not None:
            listener(Headers(response))
        return original(response, *args, **kwargs)

    return hf_raise_for_status


def traced_session(original: Any) -> Any:
    """Wrap ``AsyncInferenceClient._get_client_session``: its sessions report their responses."""

    @functools.wraps(original)
    def _get_client_session(self: Any, *args: Any, **kwargs: Any) -> Any:
        session = original(self, *args, **kwargs)
        listener, traces = headers_listener(), getattr(session, "trace_configs", None)
        if listener is not None and isinstance(traces, list):  # a mock has something else
            traces.append(_trace(listener))
        return session

    return _get_client_session


def _trace(listener: Callable[[Headers], None]) -> Any:
    trace = import_module("aiohttp").TraceConfig()  # imported already: the session is made of it

    async def answered(session: object, context: object, end: Any) -> None:
        listener(Headers(end.response))

    trace.on_request_end.append(answered)
    trace.freeze()
    return trace


class ForkSteps(NamedTuple):
    """What is done around a fork: before it, and after it on both sides."""

    before: Callable[[], None]
    in_parent: Callable[[], None]
    in_child: Callable[[], None]


def _before_fork() -> None:
    # A child spends from its parent's ledger, for which the parent needs a meter.
    if INSTRUMENTATION.in_place:
        INSTRUMENTATION.wake()
    INSTRUMENTATION.waking.acquire()  # another thread's lock would stay locked in the child
    for steps in INSTRUMENTATION.around_forks:
        steps.before()


def _after_fork_in_parent() -> None:
    for steps in INSTRUMENTATION.around_forks:
        steps.in_parent()
    INSTRUMENTATION.waking.release()


def _after_fork_in_child() -> None:
    for steps in INSTRUMENTATION.around_forks:
        steps.in_child()
    INSTRUMENTATION.waking.release()


# The exception to "no module state": the patched classes belong to the process, so does this.
INSTRUMENTATION = HubInstrumentation()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
