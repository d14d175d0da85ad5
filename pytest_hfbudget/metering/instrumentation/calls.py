"""What a paid call of huggingface_hub's clients goes through: held before, settled after."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol

from pytest_hfbudget.errors import HFBudgetError
from pytest_hfbudget.metering.call import Call
from pytest_hfbudget.metering.hold import begin, resume
from pytest_hfbudget.metering.limits import DEFAULT_VARIANT, RequestVariant
from pytest_hfbudget.metering.meter import Meter
from pytest_hfbudget.metering.replay import SendWatch, async_session, is_mock, sync_session
from pytest_hfbudget.metering.request import (
    UNKNOWN_MODEL,
    AskedModel,
    OutgoingCall,
    P,
    Parameters,
    changed,
    describe,
    printable_model,
)
from pytest_hfbudget.metering.stream import MeteredAsyncStream, MeteredStream
from pytest_hfbudget.metering.transport_probe import TransportProbe
from pytest_hfbudget.metering.usage import UNREADABLE_ANSWER
from pytest_hfbudget.metering.waiting import in_thread, let_the_loop_turn
from pytest_hfbudget.pricing import split_model
from pytest_hfbudget.pricing.table import is_below
from pytest_hfbudget.settings import ROUTER
from pytest_hfbudget.text import printable

logger = logging.getLogger("pytest_hfbudget")

EMULATED_TASK = "x-emulator-task"
SESSION_HEADER = "X-HF-Session-id"
LONGEST_SESSION_ID = 256

# Where the parameters of a request keep its `AskedModel`.
ASKED = "hfbudget_asked"
# Providers by which a call does not go to the host of a third party.
ROUTED = (None, "auto", "hf-inference")
NO_ATTRIBUTES: dict[str, Any] = {}
Prepare = Callable[..., Parameters]


class Instrumentation(Protocol):
    """The installed instrumentation: the present meter, and the probe of what is sent."""

    meter: Meter | None
    probe: TransportProbe


@dataclass(frozen=True)
class ClientRoute:
    """How the calls of one kind of client go out: the meter, and the client's HTTP session."""

    instrumentation: Instrumentation
    session: Callable[[Any], Any]

    def outgoing(
        self, client: Any, parameters: Any, stream: bool, variant: RequestVariant
    ) -> tuple[Meter, OutgoingCall] | None:
        """The meter and the description of a call to be sent; None if it is not metered."""
        meter, probe = self.instrumentation.meter, self.instrumentation.probe
        if meter is None:
            return None
        budgets, at = meter.budgets, time.time()
        asked = getattr(parameters, "__dict__", NO_ATTRIBUTES).get(ASKED)
        try:
            url = str.__str__(parameters.url)  # raises for anything else, such as a mock
            if meter.router != ROUTER or meter.emulator:
                parameters = routed(parameters, meter.router, meter.emulator)
                url = parameters.url
            watch = SendWatch(probe, self.session, client, url)
            if meter.emulator:
                named = asked.provider if isinstance(asked, AskedModel) else None
                _stay_in(meter, watch, url, probe.bills(url) or named not in ROUTED)
            headers = getattr(parameters, "headers", None)  # a stand-in of a test may have none
            session_id = budgets.session_id
            if session_id and isinstance(headers, dict) and url.startswith(f"{meter.router}/"):
                headers = headers.copy()
                session_id = put_session_id(headers, session_id)
                parameters = changed(parameters, headers=headers)
            else:
                session_id = ""
        except (TypeError, AttributeError) as error:
            meter.count_unmeterable(error, capped=budgets.capped())
            return None
        return meter, OutgoingCall(
            parameters,
            watch,
            asked if isinstance(asked, AskedModel) else UNKNOWN_MODEL,
            stream,
            getattr(client, "timeout", None),
            budgets.active(),
            budgets.where,
            at if isinstance(at, float) else 0.0,  # a test may have put a mock there
            meter.clock(),
            variant,
            session_id,
        )


def _stay_in(meter: Meter, watch: SendWatch, url: str, paid: bool) -> None:
    """Keep a call of a rehearsal from leaving for a paid service; a stand-in may answer it.

    Raises:
        BudgetExceededError: it could leave unseen.
    """
    if meter.leaves(url, paid=paid):
        watch.stop = functools.partial(meter.refuse_to_leave, url)
        if not watch.watched():
            raise watch.stop()


def put_session_id(headers: MutableMapping[str, Any], session_id: str) -> str:
    """Set the session id on the headers of a request to the router, unless the caller has set one.

    Hugging Face tells the cost of a session by this id, of at most 256 characters (the Hub's
    OpenAPI document, 2026-08).

    Args:
        headers: of any HTTP library; the id is added to them.
        session_id: the run's, which is not empty.

    Returns:
        The id that is sent: the run's, or the caller's own.
    """
    for name, value in headers.items():
        if name.lower() == "x-hf-session-id":
            return printable(str(value))[:LONGEST_SESSION_ID]
    headers[SESSION_HEADER] = session_id
    return session_id


def routed(parameters: P, router: str, emulator: str) -> P:
    """What is to be posted, with this run's router in place of the public one.

    This is done for calls that can't be metered, too: a rehearsal must not reach the real service.
    The emulator gets the task in a header, because the URL of an endpoint does not tell it.

    Args:
        router: the base URL of this run's router.
        emulator: the base URL of a rehearsal's emulator, or empty.
    """
    if router != ROUTER and parameters.url.startswith(f"{ROUTER}/"):
        parameters = changed(parameters, url=router + parameters.url[len(ROUTER) :])
    if emulator and is_below(parameters.url, emulator):
        headers = {**parameters.headers, EMULATED_TASK: parameters.task}
        parameters = changed(parameters, headers=headers)
    return parameters


@dataclass
class RetryState:
    """Decides whether a failed call is sent again: as a variant, or to a resumed endpoint."""

    variant: RequestVariant = DEFAULT_VARIANT
    revived: bool = False

    def again(self, call: Call, error: BaseException) -> bool:
        """Whether to send it again; if so, the reason for the failure is gone by then.

        Raises:
            BudgetExceededError: the endpoint that was called is paused because of a cap.
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

    async def again_in_task(self, call: Call, error: BaseException) -> bool:
        """As `again`, while other tasks run: an endpoint may take minutes to resume."""
        if call.draft.endpoint is None:
            return self.again(call, error)
        return await in_thread(self.again, call, error)


# --- the model of a call


def recording_asked_model(original: Any, instrumentation: Instrumentation) -> Any:
    """Wrap ``TaskProviderHelper.prepare_request``, which still gets the Hub id of the model.

    The parameters that it returns have the provider's own id of the model, and no provider.
    huggingface_hub passes on nothing else, so the wrapper keeps the Hub id in them. It also
    replaces the model, if a fallback is due.
    """

    @functools.wraps(original)
    def prepare_request(self: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        provider = getattr(self, "provider", None)
        meter = instrumentation.meter
        test = meter.budgets.test if meter is not None else None
        if meter is not None and (meter.budgets.watched or (test is not None and test.thresholds)):
            parameters, asked = prepared(meter, functools.partial(original, self), provider, kwargs)
        else:
            parameters = original(self, **kwargs)
            asked = AskedModel(kwargs.get("model"), provider)
        if hasattr(parameters, "__dict__"):  # a stand-in of a test may have no attributes
            vars(parameters)[ASKED] = asked
        return parameters

    return prepare_request


def prepared(
    meter: Meter, prepare: Prepare, provider: str | None, arguments: Mapping[str, Any]
) -> tuple[Parameters, AskedModel]:
    """What is to be posted: with the model that was asked for, or with that of a due fallback.

    huggingface_hub itself builds the request for the other model. It knows the provider's name for
    that model, the URL, and whether the provider serves it for this task.

    Args:
        prepare: huggingface_hub's ``prepare_request`` for this provider and task.
        arguments: the arguments with which it was called.
    """
    name = _asked_name(arguments)
    due = meter.watcher.due(meter.budgets.active().thresholds, meter.ledger)
    if due and split_model(name)[0] != split_model(due.model)[0]:
        try:
            return _swapped(meter, prepare, provider, arguments, due.model)
        except Exception as error:  # whatever is wrong with it, the call itself is fine
            meter.watcher.warn(
                due.scope,
                "fallback",
                f"{due.scope.name}: a call to {printable_model(name)} could not be sent with "
                f"{due.model} instead, so it was sent as it is: {error}",
            )
    return prepare(**arguments), AskedModel(arguments.get("model"), provider)


def _swapped(
    meter: Meter, prepare: Prepare, provider: str | None, arguments: Mapping[str, Any], model: str
) -> tuple[Parameters, AskedModel]:
    """The same call with another model; raises `ValueError` if it can't be sent with that."""
    other = _arguments(meter, provider, arguments, model)
    parameters = prepare(**other)
    asked = AskedModel(other.get("model"), provider, printable_model(_asked_name(arguments)))
    request = describe(parameters, routers=meter.routers, asked=asked, stream=False)
    if meter.book.quote(request, meter.budgets.active().explicit) is None:
        raise ValueError(f"{request.model} has no known price")
    return parameters, asked


def _arguments(
    meter: Meter, provider: str | None, arguments: Mapping[str, Any], model: str
) -> dict[str, Any]:
    """The arguments of ``prepare_request`` for the other model; raises as `_swapped`."""
    url = arguments.get("model") or ""
    parameters = dict(arguments.get("parameters") or {})
    if url.startswith(("http://", "https://")):
        if not any(is_below(url, router) for router in meter.routers):
            raise ValueError(f"the server at {printable_model(url)} chooses the model itself")
        # The router's own URL was given as base_url: the payload alone names the model.
        return {**arguments, "parameters": {**parameters, "model": model}}
    if provider != "auto":
        model, pinned = split_model(model)
        if pinned not in (None, provider):
            raise ValueError(f"the call goes to {provider}, not to {pinned}")
    if "model" in parameters:
        parameters["model"] = model
    return {**arguments, "model": model, "parameters": parameters}


def _asked_name(arguments: Mapping[str, Any]) -> str:
    """The model as the caller named it."""
    parameters = arguments.get("parameters") or {}
    return str(parameters.get("model") or arguments.get("model") or "")


def metered(original: Any, instrumentation: Instrumentation, module: ModuleType) -> Any:
    """``InferenceClient._inner_post``, with every call held before and settled after."""
    route = ClientRoute(instrumentation, sync_session(module))

    @functools.wraps(original)
    def _inner_post(self: Any, request_parameters: Any, *, stream: bool = False) -> Any:
        __tracebackhide__ = True
        retry = RetryState()
        while True:
            found = route.outgoing(self, request_parameters, stream, retry.variant)
            if found is None:
                return original(self, request_parameters, stream=stream)
            meter, outgoing = found
            call = begin(meter, outgoing, blocking=True)
            if call is not None and call.wait is not None:
                call.wait.block()
                call = resume(call)
            if call is None:
                with outgoing.watch:  # so that the HTTP layer does not meter it either
                    return original(self, outgoing.parameters, stream=stream)
            try:
                with outgoing.watch:
                    answer = original(self, call.parameters, stream=stream)
                    if not stream:
                        call.outcome.answer = answer
                        call.outcome.ended = meter.clock()
            except BaseException as error:
                failed(call, error)
                if not retry.again(call, error):
                    raise
                continue
            return _answer(call, answer, MeteredStream if stream else None)

    return _inner_post


def metered_async(original: Any, instrumentation: Instrumentation) -> Any:
    """``AsyncInferenceClient._inner_post``, with every call held before and settled after."""
    route = ClientRoute(instrumentation, async_session)

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
            if meter.open_calls and outgoing.budgets.capped:
                await let_the_loop_turn()
            call = begin(meter, outgoing, blocking=False)
            if call is not None and call.wait is not None:
                await call.wait.suspend()
                call = resume(call)
            if call is None:
                with outgoing.watch:
                    return await original(self, outgoing.parameters, stream=stream)
            try:
                with outgoing.watch:
                    answer = await original(self, call.parameters, stream=stream)
                    if not stream:
                        call.outcome.answer = answer
                        call.outcome.ended = meter.clock()
            except GeneratorExit:
                call.drop()
                raise
            except BaseException as error:
                failed(call, error)
                if not await retry.again_in_task(call, error):
                    raise
                continue
            return _answer(call, answer, MeteredAsyncStream if stream else None)

    return _inner_post


def failed(call: Call, error: BaseException) -> None:
    """Settle a call that raised.

    Raises:
        BudgetExceededError: it was refused on its way out.
    """
    __tracebackhide__ = True
    call.failed(error)
    if call.refusal is not None and isinstance(error, Exception):  # a Ctrl-C stays one
        raise call.refusal.with_traceback(None) from None


def _answer(call: Call, answer: Any, stream: Callable[[Call, Any], Any] | None) -> Any:
    """What the caller gets: an answer, which is settled now, or a stream, which settles itself.

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
