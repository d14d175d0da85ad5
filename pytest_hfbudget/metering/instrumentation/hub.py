"""The one place that knows how huggingface_hub sends a paid call.

Every task of both clients passes through ``_inner_post``, in every release since 0.28, while the
HTTP library below it changed twice (requests, httpx, httpx2). This file alone names those
modules, and it imports none of them: it waits until another module does.
"""

from __future__ import annotations

import functools
import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from pytest_hfbudget.errors import ConfigError, HFBudgetError
from pytest_hfbudget.metering.call import Call
from pytest_hfbudget.metering.fallback import ASKED, recording_asked_model
from pytest_hfbudget.metering.hold import begin, deferred, resume
from pytest_hfbudget.metering.instrumentation.addresses import DEFAULT_ROUTER, routed
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
from pytest_hfbudget.metering.instrumentation.patching import Patches, PostImport
from pytest_hfbudget.metering.limits import DEFAULT_VARIANT, RequestVariant
from pytest_hfbudget.metering.meter import Meter
from pytest_hfbudget.metering.replay import SendWatch, is_mock, result_of
from pytest_hfbudget.metering.request import (
    UNKNOWN_MODEL,
    AskedModel,
    OutgoingCall,
)
from pytest_hfbudget.metering.stream import MeteredAsyncStream, MeteredStream
from pytest_hfbudget.metering.transport_probe import (
    Headers,
    TransportProbe,
    headers_listener,
    traced_session,
)
from pytest_hfbudget.metering.usage import UNREADABLE_ANSWER
from pytest_hfbudget.metering.waiting import in_thread

logger = logging.getLogger("pytest_hfbudget")

SYNC = "huggingface_hub.inference._client"
ASYNC = "huggingface_hub.inference._generated._async_client"
HELPERS = "huggingface_hub.inference._providers._common"
NEEDED = (SYNC, ASYNC, HELPERS)

NO_ATTRIBUTES: dict[str, Any] = {}


@dataclass
class HubInstrumentation:
    """Wraps ``_inner_post`` of both clients while it is installed.

    Attributes:
        meter: what calls go through now; None lets them pass.
        problem: why calls can't be seen, where this huggingface_hub is not known.
    """

    meter: Meter | None = None
    problem: str = ""
    probe: TransportProbe = field(default_factory=TransportProbe)
    _patches: Patches = field(default_factory=Patches)
    _watch: PostImport | None = None
    _wrapped: list[type] = field(default_factory=list)

    @property
    def in_place(self) -> bool:
        """Whether a client has been imported, so that calls are to be expected."""
        return bool(self._patches)

    def install(self) -> None:
        """Wrap what is imported already, and the rest as soon as it is."""
        self.probe.install()
        self._watch = PostImport(
            {
                SYNC: self._wrap_sync,
                ASYNC: self._wrap_async,
                HELPERS: self._wrap_helpers,
                PACKAGE: self._look,
            }
        )
        self._watch.install()

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

    def uninstall(self) -> None:
        """Put back what was there, unless it was wrapped again since."""
        if self._watch is not None:
            self._watch.uninstall()
            self._watch = None
        self._patches.restore()
        self.probe.uninstall()
        self._wrapped.clear()
        self.problem = ""

    def _wrap_sync(self, module: ModuleType) -> None:
        def session(client: Any) -> Any:
            return result_of(module.get_session)

        self._wrap_client(module, "InferenceClient", metered, session)

    def _wrap_async(self, module: ModuleType) -> None:
        self._wrap_client(module, "AsyncInferenceClient", metered_async, _async_session)

    def _wrap_client(
        self,
        module: ModuleType,
        name: str,
        wrapper: Callable[[Any, ClientRoute], Any],
        session: Callable[[Any], Any],
    ) -> None:
        client = getattr(module, name, None)
        if client is None or not has_choke_point(client):
            self._unknown(f"{name}.{CHOKE_POINT}")
            return
        self._wrapped.append(client)
        for method, original in bypassing(client).items():
            guard = guarded(original, bypassed(name, method), self._is_capped, self._missed)
            self._patches.replace(client, method, guard)
        route = ClientRoute(self, session)
        self._patches.replace(client, CHOKE_POINT, wrapper(getattr(client, CHOKE_POINT), route))
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
            recording = recording_asked_model(prepare, self)
            self._patches.replace(helper, "prepare_request", recording)

    def _unknown(self, part: str) -> None:
        self.problem = problem(part)
        if _capped(self.meter):
            raise ConfigError(self.problem)
        logger.warning("%s Nothing is counted.", self.problem)


@dataclass(frozen=True)
class ClientRoute:
    """How the calls of one kind of client go out: through which meter, by which session."""

    hub: HubInstrumentation
    session: Callable[[Any], Any]

    def outgoing(
        self, client: Any, parameters: Any, stream: bool, variant: RequestVariant
    ) -> tuple[Meter, OutgoingCall] | None:
        """What is known of a call that is about to be sent; None where it is not metered."""
        meter = self.hub.meter
        if meter is None:
            return None
        budgets, at = meter.budgets, time.time()
        asked = getattr(parameters, "__dict__", NO_ATTRIBUTES).get(ASKED)
        try:
            url = str.__str__(parameters.url)  # raises for anything else, such as a mock
            if meter.router != DEFAULT_ROUTER or meter.emulator:
                parameters = routed(parameters, meter.router, meter.emulator)
                url = parameters.url
        except (TypeError, AttributeError) as error:
            meter.unknown(error, capped=budgets.capped())
            return None
        return meter, OutgoingCall(
            parameters,
            SendWatch(self.hub.probe, self.session, client, url),
            asked if isinstance(asked, AskedModel) else UNKNOWN_MODEL,
            stream,
            getattr(client, "timeout", None),
            budgets.active(),
            budgets.where,
            at if isinstance(at, float) else 0.0,  # a test may have put a mock there
            meter.clock(),
            variant,
        )


def _async_session(client: Any) -> Any:
    """What an async client posts by; before 1.0 it makes a session for each call."""
    if hasattr(client, "_get_async_client"):
        make = client._get_async_client
        return result_of(make) if is_mock(make) else client._async_client
    return sys.modules["aiohttp"].ClientSession


def _capped(meter: Meter | None) -> bool:
    return meter is not None and meter.budgets.capped()


@dataclass
class RetryState:
    """When a call that failed is sent once more: as a variant, or to a revived endpoint."""

    variant: RequestVariant = DEFAULT_VARIANT
    revived: bool = False

    def again(self, call: Call, error: BaseException) -> bool:
        """Whether to try again, after having removed what was in the way.

        Raises:
            BudgetExceededError: the endpoint that was called is paused for the sake of a cap.
        """
        if not isinstance(error, Exception):
            return False  # a Ctrl-C, a cancelled task
        if variant := call.another_variant(error):
            self.variant = variant
            return True
        try:
            self.revived = not self.revived and call.revive(error)
        except HFBudgetError as refusal:
            # Not chained to the HTTP error: its frames hold the request's headers, and pytest
            # would show the token in them.
            raise refusal.with_traceback(None) from None
        return self.revived


# The two shells differ by an ``await``; all that they do is in `hold`, `call` and `deferred`.


def metered(original: Any, route: ClientRoute) -> Any:
    """``InferenceClient._inner_post``, with every call held before and settled after."""

    @functools.wraps(original)
    def _inner_post(self: Any, request_parameters: Any, *, stream: bool = False) -> Any:
        __tracebackhide__ = True
        retry = RetryState()
        while True:
            found = route.outgoing(self, request_parameters, stream, retry.variant)
            if found is None:
                return original(self, request_parameters, stream=stream)
            meter, outgoing = found
            if (later := deferred(meter, outgoing)) is not None:
                with later:
                    return later.answered(original(self, outgoing.parameters, stream=False))
            call = begin(meter, outgoing, blocks=True)
            if call is not None and call.wait is not None:
                call.wait.block()
                call = resume(call)
            if call is None:
                return original(self, outgoing.parameters, stream=stream)
            try:
                with outgoing.watch:
                    answer = original(self, call.parameters, stream=stream)
            except BaseException as error:
                _failed(call, error)
                if not retry.again(call, error):
                    raise
                continue
            return _answer(call, answer, MeteredStream if stream else None)

    return _inner_post


def metered_async(original: Any, route: ClientRoute) -> Any:
    """``AsyncInferenceClient._inner_post``, with every call held before and settled after."""

    @functools.wraps(original)
    async def _inner_post(self: Any, request_parameters: Any, *, stream: bool = False) -> Any:
        __tracebackhide__ = True
        retry = RetryState()
        make = getattr(self, "_get_async_client", None)
        if make is not None and not is_mock(make):
            await make()  # as the original does first, because the probe looks at it
        while True:
            found = route.outgoing(self, request_parameters, stream, retry.variant)
            if found is None:
                return await original(self, request_parameters, stream=stream)
            meter, outgoing = found
            if (later := deferred(meter, outgoing)) is not None:
                with later:
                    return later.answered(await original(self, outgoing.parameters, stream=False))
            call = begin(meter, outgoing, blocks=False)
            if call is not None and call.wait is not None:
                await call.wait.suspend()
                call = resume(call)
            if call is None:
                return await original(self, outgoing.parameters, stream=stream)
            try:
                with outgoing.watch:
                    answer = await original(self, call.parameters, stream=stream)
            except GeneratorExit:
                # The garbage collector may run while a lock of the plugin is held.
                meter.later.append(call.close)
                raise
            except BaseException as error:
                _failed(call, error)
                if not await _again(retry, call, error):
                    raise
                continue
            return _answer(call, answer, MeteredAsyncStream if stream else None)

    return _inner_post


async def _again(retry: RetryState, call: Call, error: BaseException) -> bool:
    if call.draft.endpoint is None:
        return retry.again(call, error)
    # An endpoint may take minutes to come back: other tasks go on meanwhile.
    return await in_thread(retry.again, call, error)


def _failed(call: Call, error: BaseException) -> None:
    """Settle a call that raised.

    Raises:
        BudgetExceededError: it was refused on its way out.
    """
    __tracebackhide__ = True
    call.failed(error)
    if call.refusal is not None:
        raise call.refusal.with_traceback(None) from None


def _answer(call: Call, answer: Any, stream: Callable[[Call, Any], Any] | None) -> Any:
    """What the caller gets: the answer, which is settled now, or the stream that settles itself.

    Raises:
        BudgetExceededError: the answer was cut off by the limit that a cap had set.
    """
    if stream is not None:
        try:
            return stream(call, answer)
        except (TypeError, AttributeError):  # it is no iterator
            call.close()
            return answer
    try:
        call.answered(answer)
    except HFBudgetError:
        raise
    except Exception:
        logger.exception(UNREADABLE_ANSWER)
        call.lost("200")
    return answer


def reporting_headers(original: Any) -> Any:
    """``hf_raise_for_status``, where a response is in hand: its headers say who answered."""

    @functools.wraps(original)
    def hf_raise_for_status(response: Any, *args: Any, **kwargs: Any) -> Any:
        listener = headers_listener()
        if listener is not None:
            listener(Headers(response))
        return original(response, *args, **kwargs)

    return hf_raise_for_status
