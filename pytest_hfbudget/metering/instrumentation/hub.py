"""The one place that knows how huggingface_hub sends a paid call.

Every task of both clients passes through ``_inner_post``, in every release since 0.28, while the
HTTP library below it changed twice (requests, httpx, httpx2). This file alone names those
modules, and it imports none of them: it waits until another module does. What a call goes through
is in `calls`, which is imported for the first call.
"""

from __future__ import annotations

import functools
import inspect
import logging
import os
import threading
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from pytest_hfbudget.errors import ConfigError
from pytest_hfbudget.locks import off_loop
from pytest_hfbudget.metering.instrumentation import Patches
from pytest_hfbudget.metering.instrumentation.http_layer import HttpLayer
from pytest_hfbudget.metering.instrumentation.hub_contract import (
    CHOKE_POINT,
    PACKAGE,
    absent,
    bypassed,
    bypassing,
    gap,
    guarded,
    has_choke_point,
    problem,
)
from pytest_hfbudget.metering.transport_probe import (
    HeadersListener,
    TransportProbe,
    headers_listener,
)
from pytest_hfbudget.text import Headers

if TYPE_CHECKING:
    from pytest_hfbudget.metering.meter import Meter

logger = logging.getLogger("pytest_hfbudget")

SYNC = "huggingface_hub.inference._client"
ASYNC = "huggingface_hub.inference._generated._async_client"
HELPERS = "huggingface_hub.inference._providers._common"
NEEDED = (SYNC, ASYNC, HELPERS)


class HubInstrumentation:
    """Wraps ``_inner_post`` of both clients while it is installed.

    Attributes:
        meter: what calls go through now; where there is none, the last of the `wakers` makes one.
        wakers: make the meter of a run for its first call, and put it in place. Without any, and
            without a meter, calls pass.
        around_forks: what the meters do when this process forks.
        problem: why calls can't be seen, where this huggingface_hub is not known.
        http: the same for requests that other clients send.
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
        """Wrap what is imported already, and the rest as soon as it is; harmless if done before."""
        if self._patches.watching:
            return
        # One watch for all of them: each is asked about every import of a run.
        self._patches.watch(
            {
                **self.probe.hooks(),
                **self.http.hooks(),
                SYNC: self._wrap_sync,
                ASYNC: self._wrap_async,
                HELPERS: self._wrap_helpers,
                PACKAGE: self._look,
            }
        )

    def require(self) -> None:
        """Make sure that calls can be seen, as far as huggingface_hub is imported by now.

        Raises:
            ConfigError: a part of it is not where it was, or not as it was.
        """
        if not self.problem and (part := gap(NEEDED, self._wrapped)):
            self.problem = problem(part)
        if self.problem:
            raise ConfigError(self.problem)

    def _look(self, package: ModuleType) -> None:
        """Under a cap all has to be in place as soon as huggingface_hub is imported."""
        if _capped(self.meter):
            self.require()
        elif part := absent(package, NEEDED):
            self._unknown(part)

    @off_loop()  # modules are read, also where a test makes its first call in its event loop
    def wake(self) -> None:
        """Have a meter, if a run has left that to the first call."""
        with self.waking:
            if self.meter is None and self.wakers:
                self.wakers[-1]()

    def uninstall(self) -> None:
        """Put back what was there, unless it was wrapped again since, or is still needed."""
        if self.meter is not None or self.wakers:
            return
        self._patches.restore()
        self.http.uninstall()
        self.probe.uninstall()
        self._wrapped.clear()
        self.problem = ""

    def _wrap_sync(self, module: ModuleType) -> None:
        def make(original: Any) -> Any:
            from pytest_hfbudget.metering.instrumentation.calls import (
                ClientRoute,
                metered,
                sync_session,
            )

            return metered(original, ClientRoute(self, sync_session(module)))

        self._wrap_client(module, "InferenceClient", make)

    def _wrap_async(self, module: ModuleType) -> None:
        def make(original: Any) -> Any:
            from pytest_hfbudget.metering.instrumentation.calls import (
                ClientRoute,
                async_session,
                metered_async,
            )

            return metered_async(original, ClientRoute(self, async_session))

        self._wrap_client(module, "AsyncInferenceClient", make)

    def _wrap_client(self, module: ModuleType, name: str, make: Callable[[Any], Any]) -> None:
        client = getattr(module, name, None)
        if client is None or not has_choke_point(client):
            self._unknown(f"{name}.{CHOKE_POINT}")
            return
        self._wrapped.append(client)
        for method, original in bypassing(client).items():
            guard = guarded(original, bypassed(name, method), self._is_capped, self._missed)
            self._patches.replace(client, method, guard)
        self._replace(client, CHOKE_POINT, make)
        make_session = getattr(client, "_get_client_session", None)
        if make_session is not None:  # aiohttp, before 1.0
            self._patches.replace(client, "_get_client_session", traced_session(make_session))
        raise_for_status = getattr(module, "hf_raise_for_status", None)
        if raise_for_status is not None:
            self._patches.replace(
                module, "hf_raise_for_status", reporting_headers(raise_for_status)
            )

    def _is_capped(self) -> bool:
        return _capped(self.meter)

    def _missed(self, why: str) -> None:
        if (meter := self.meter) is not None:
            meter.missed(why)

    def _wrap_helpers(self, module: ModuleType) -> None:
        helper = getattr(module, "TaskProviderHelper", None)
        prepare = getattr(helper, "prepare_request", None)
        if prepare is None:
            self._unknown("TaskProviderHelper.prepare_request")
        else:

            def make(original: Any) -> Any:
                from pytest_hfbudget.metering.instrumentation.calls import recording_asked_model

                return recording_asked_model(original, self)

            self._replace(helper, "prepare_request", make)

    def _replace(self, owner: Any, name: str, make: Callable[[Any], Any]) -> None:
        """Wrap a method now, or at its first call where no meter is there yet."""
        original = getattr(owner, name)
        if self.meter is not None:
            self._patches.replace(owner, name, make(original))
        else:
            self._patches.replace(owner, name, Asleep(self, owner, name, make).stub(original))

    def _unknown(self, part: str) -> None:
        self.problem = problem(part)
        if _capped(self.meter):
            raise ConfigError(self.problem)
        logger.warning("%s Nothing is counted.", self.problem)


class Asleep:
    """A method whose wrapper is made for its first call."""

    def __init__(
        self, hub: HubInstrumentation, owner: Any, name: str, make: Callable[[Any], Any]
    ) -> None:
        self.hub, self.owner, self.name, self.make = hub, owner, name, make
        self.made: Any = None

    def stub(self, original: Any) -> Any:
        """What stands in the place of a method until then."""
        sleeping = self

        if inspect.iscoroutinefunction(original):

            @functools.wraps(original)
            async def method(self: Any, *args: Any, **kwargs: Any) -> Any:
                __tracebackhide__ = True
                return await sleeping.wake(method)(self, *args, **kwargs)

        else:

            @functools.wraps(original)
            def method(self: Any, *args: Any, **kwargs: Any) -> Any:
                __tracebackhide__ = True
                return sleeping.wake(method)(self, *args, **kwargs)

        return method

    def wake(self, stub: Any) -> Any:
        """The wrapper; from now on it stands there itself, unless the stub was wrapped again."""
        self.hub.wake()
        if self.made is None:
            with off_loop():
                self.made = self.make(stub.__wrapped__)
            if vars(self.owner).get(self.name) is stub:
                setattr(self.owner, self.name, self.made)
        return self.made


def _capped(meter: Meter | None) -> bool:
    return meter is not None and meter.budgets.capped()


def reporting_headers(original: Any) -> Any:
    """``hf_raise_for_status``, where a response is in hand: its headers say who answered."""

    @functools.wraps(original)
    def hf_raise_for_status(response: Any, *args: Any, **kwargs: Any) -> Any:
        listener = headers_listener()
        if listener is not None:
            listener(Headers(response))
        return original(response, *args, **kwargs)

    return hf_raise_for_status


def traced_session(original: Any) -> Any:
    """``AsyncInferenceClient._get_client_session``, with sessions that report their responses."""

    @functools.wraps(original)
    def _get_client_session(self: Any, *args: Any, **kwargs: Any) -> Any:
        session = original(self, *args, **kwargs)
        listener, traces = headers_listener(), getattr(session, "trace_configs", None)
        if listener is not None and isinstance(traces, list):  # a mock has something else
            traces.append(_trace(listener))
        return session

    return _get_client_session


def _trace(listener: HeadersListener) -> Any:
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
    # A child spends where its parent does, which is prepared where the parent has a meter.
    if INSTRUMENTATION.in_place:
        INSTRUMENTATION.wake()
    INSTRUMENTATION.waking.acquire()  # what another thread holds is held in the child for ever
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
