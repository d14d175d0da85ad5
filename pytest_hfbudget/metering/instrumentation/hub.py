"""The tap: the one place that knows how huggingface_hub sends a paid call.

Every task of both clients passes through ``_inner_post``, in every release since 0.28, while the
HTTP library below it changed twice (requests, httpx, httpx2). This file alone names those
modules, and it imports none of them: it waits until somebody else does.
"""

from __future__ import annotations

import functools
import logging
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from pytest_hfbudget.errors import ConfigError, HFBudgetError
from pytest_hfbudget.metering.call import Call
from pytest_hfbudget.metering.deferred import NONSENSE
from pytest_hfbudget.metering.fallback import prepared
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
from pytest_hfbudget.metering.limits import AS_USUAL, RequestVariant
from pytest_hfbudget.metering.meter import Meter
from pytest_hfbudget.metering.mocks import Headers, is_mock, result_of
from pytest_hfbudget.metering.replay import SendWatch
from pytest_hfbudget.metering.request import NAMELESS, AskedModel, OutgoingCall
from pytest_hfbudget.metering.stream import MeteredAsyncStream, MeteredStream
from pytest_hfbudget.metering.transport_probe import TransportProbe, noting, noting_session
from pytest_hfbudget.metering.waiting import blocking, in_thread, suspending

logger = logging.getLogger("pytest_hfbudget")

SYNC = "huggingface_hub.inference._client"
ASYNC = "huggingface_hub.inference._generated._async_client"
HELPERS = "huggingface_hub.inference._providers._common"
NEEDED = (SYNC, ASYNC, HELPERS)

Current = Callable[[], "Meter | None"]


@dataclass
class HubInstrumentation:
    """Wraps ``_inner_post`` of both clients while it is installed.

    Attributes:
        current: the meter that calls go through now; None lets them pass.
        problem: why calls can't be seen, where huggingface_hub is one that is not known.
    """

    current: Current
    problem: str = ""
    _traffic: TransportProbe = field(default_factory=TransportProbe)
    _patches: Patches = field(default_factory=Patches)
    _watch: PostImport | None = None
    _wrapped: list[type] = field(default_factory=list)

    @property
    def in_place(self) -> bool:
        """Whether a client has been imported, so that calls are to be expected."""
        return bool(self._patches)

    def install(self) -> None:
        """Wrap what is imported already, and the rest as soon as it is."""
        self._traffic.install()
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
        if _capped(self.current()):
            self.require()
        elif part := absent(package, NEEDED):
            self._unknown(part)

    def uninstall(self) -> None:
        """Put back what was there, unless somebody has wrapped it since."""
        if self._watch is not None:
            self._watch.uninstall()
            self._watch = None
        self._patches.restore()
        self._traffic.uninstall()
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
        ways = ClientRoute(self.current, self._traffic, session)
        self._patches.replace(client, CHOKE_POINT, wrapper(getattr(client, CHOKE_POINT), ways))
        make_session = getattr(client, "_get_client_session", None)
        if make_session is not None:  # aiohttp, before 1.0
            self._patches.replace(client, "_get_client_session", noting_session(make_session))
        raise_for_status = getattr(module, "hf_raise_for_status", None)
        if raise_for_status is not None:
            self._patches.replace(module, "hf_raise_for_status", noting_headers(raise_for_status))

    def _is_capped(self) -> bool:
        return _capped(self.current())

    def _missed(self, why: str) -> None:
        if (meter := self.current()) is not None:
            meter.missed(why)

    def _wrap_helpers(self, module: ModuleType) -> None:
        helper = getattr(module, "TaskProviderHelper", None)
        prepare = getattr(helper, "prepare_request", None)
        if prepare is None:
            self._unknown("TaskProviderHelper.prepare_request")
        else:
            self._patches.replace(helper, "prepare_request", noting_names(prepare, self.current))

    def _unknown(self, part: str) -> None:
        self.problem = problem(part)
        if _capped(self.current()):
            raise ConfigError(self.problem)
        logger.warning("%s Nothing is counted.", self.problem)


@dataclass(frozen=True)
class ClientRoute:
    """How the calls of one kind of client go out: through which meter, by which session."""

    current: Current
    traffic: TransportProbe
    session: Callable[[Any], Any]

    def sending(
        self, client: Any, parameters: Any, stream: bool, manner: RequestVariant
    ) -> tuple[Meter, OutgoingCall] | None:
        """What is known of a call that is about to be sent; None where nobody meters it."""
        meter = self.current()
        if meter is None:
            return None
        payer, at = meter.payer, time.time()
        named = getattr(parameters, "__dict__", {}).get("hfbudget_named")
        try:
            parameters = meter.routed(parameters)
        except (TypeError, AttributeError) as error:
            meter.unknown(error, capped=payer.capped())
            return None
        return meter, OutgoingCall(
            parameters,
            SendWatch(self.traffic, self.session, client, parameters.url),
            named if isinstance(named, AskedModel) else NAMELESS,
            stream,
            getattr(client, "timeout", None),
            payer.around(),
            payer.where,
            at if isinstance(at, float) else 0.0,  # a test may have put a mock there
            meter.clock(),
            manner,
        )


def _async_session(client: Any) -> Any:
    """What an async client posts by; before 1.0 it makes a session for each call."""
    if hasattr(client, "_get_async_client"):
        make = client._get_async_client
        return result_of(make) if is_mock(make) else client._async_client
    return sys.modules["aiohttp"].ClientSession


def _capped(meter: Meter | None) -> bool:
    return meter is not None and meter.payer.capped()


@dataclass
class RetryState:
    """When a call that failed is sent once more: in another manner, or to what has come back."""

    manner: RequestVariant = AS_USUAL
    revived: bool = False

    def again(self, call: Call, error: BaseException) -> bool:
        """Whether to try again, after having done away with what was in the way.

        Raises:
            BudgetExceededError: the endpoint that was called is paused for the sake of a cap.
        """
        if not isinstance(error, Exception):
            return False  # a Ctrl-C, a cancelled task
        if manner := call.another_manner(error):
            self.manner = manner
            return True
        try:
            self.revived = not self.revived and call.revive(error)
        except HFBudgetError as refusal:
            # Not chained to the HTTP error: its frames hold the request's headers, and pytest
            # would show the token in them.
            raise refusal.with_traceback(None) from None
        return self.revived


def metered(original: Any, ways: ClientRoute) -> Any:
    """``InferenceClient._inner_post``, with every call held before and settled after."""

    @functools.wraps(original)
    def _inner_post(self: Any, request_parameters: Any, *, stream: bool = False) -> Any:
        __tracebackhide__ = True
        attempts = RetryState()
        while True:
            found = ways.sending(self, request_parameters, stream, attempts.manner)
            if found is None:
                return original(self, request_parameters, stream=stream)
            meter, sending = found
            if (note := meter.note(sending)) is not None:
                with note:
                    return note.answered(original(self, sending.parameters, stream=False))
            call = blocking(meter.begin(sending, blocks=True))
            if call is None:
                return original(self, sending.parameters, stream=stream)
            try:
                with call.way:
                    answer = original(self, call.parameters, stream=stream)
            except BaseException as error:
                call.failed(error)
                if call.refusal is not None:
                    raise call.refusal.with_traceback(None) from None
                if not attempts.again(call, error):
                    raise
                continue
            return _streamed(MeteredStream, call, answer) if stream else _whole(call, answer)

    return _inner_post


def metered_async(original: Any, ways: ClientRoute) -> Any:
    """``AsyncInferenceClient._inner_post``, with every call held before and settled after."""

    @functools.wraps(original)
    async def _inner_post(self: Any, request_parameters: Any, *, stream: bool = False) -> Any:
        __tracebackhide__ = True
        attempts = RetryState()
        make = getattr(self, "_get_async_client", None)
        if make is not None and not is_mock(make):
            await make()  # as the original does first: it is looked at
        while True:
            found = ways.sending(self, request_parameters, stream, attempts.manner)
            if found is None:
                return await original(self, request_parameters, stream=stream)
            meter, sending = found
            if (note := meter.note(sending)) is not None:
                with note:
                    return note.answered(await original(self, sending.parameters, stream=False))
            call = await suspending(meter.begin(sending, blocks=False))
            if call is None:
                return await original(self, sending.parameters, stream=stream)
            try:
                with call.way:
                    answer = await original(self, call.parameters, stream=stream)
            except GeneratorExit:
                # The collector may be at work, inside of any of our own locks: not now.
                meter.dropped.append(call)
                raise
            except BaseException as error:
                call.failed(error)
                if call.refusal is not None:
                    raise call.refusal.with_traceback(None) from None
                if not await _again(attempts, call, error):
                    raise
                continue
            return _streamed(MeteredAsyncStream, call, answer) if stream else _whole(call, answer)

    return _inner_post


async def _again(attempts: RetryState, call: Call, error: BaseException) -> bool:
    if call.leased is None:
        return attempts.again(call, error)
    # An endpoint may take minutes to come back: other tasks go on meanwhile.
    return await in_thread(attempts.again, call, error)


def _whole(call: Call, body: Any) -> Any:
    try:
        call.answered(body)
    except HFBudgetError:
        raise
    except Exception:
        logger.exception(NONSENSE)
        call.lost("200")
    return body


def _streamed(metered: Callable[[Call, Any], Any], call: Call, lines: Any) -> Any:
    try:
        return metered(call, lines)
    except (TypeError, AttributeError):  # nobody can iterate over it
        call.close()
        return lines


def noting_headers(original: Any) -> Any:
    """``hf_raise_for_status``, where a response is in hand: its headers say who answered."""

    @functools.wraps(original)
    def hf_raise_for_status(response: Any, *args: Any, **kwargs: Any) -> Any:
        note = noting()
        if note is not None:
            note(Headers(response))
        return original(response, *args, **kwargs)

    return hf_raise_for_status


def noting_names(original: Any, current: Current) -> Any:
    """``TaskProviderHelper.prepare_request``, which still knows the model by its Hub id.

    What it makes carries the provider's own id of the model, and no provider. It is also where
    another model can be put in the caller's place.
    """

    @functools.wraps(original)
    def prepare_request(self: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        provider = getattr(self, "provider", None)
        meter = current()
        if meter is not None and meter.payer.around().thresholds:
            prepare = functools.partial(original, self)
            parameters, named = prepared(meter, prepare, provider, kwargs)
        else:
            parameters = original(self, **kwargs)
            named = AskedModel(kwargs.get("model"), provider)
        with suppress(TypeError):  # what somebody has put in its place may hold nothing
            vars(parameters)["hfbudget_named"] = named
        return parameters

    return prepare_request
