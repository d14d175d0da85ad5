"""What a paid request of an HTTP library goes through: held before, settled after.

Each library has an adapter, which knows its requests and answers. The steps of a paid request are
here, the same for all libraries.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from pytest_hfbudget.errors import BudgetExceededError, UnseenCallError
from pytest_hfbudget.metering.call import Call
from pytest_hfbudget.metering.hold import begin, resume
from pytest_hfbudget.metering.instrumentation.calls import (
    ASKED,
    SESSION_HEADER,
    ClientRoute,
    RetryState,
    failed,
    prepared,
)
from pytest_hfbudget.metering.instrumentation.http_layer import HttpLayer
from pytest_hfbudget.metering.meter import Meter
from pytest_hfbudget.metering.paid_hosts import UptimeRequest, shape_of
from pytest_hfbudget.metering.replay import UptimeWatch
from pytest_hfbudget.metering.request import OutgoingCall, Parameters, changed, printable_model
from pytest_hfbudget.metering.settlement import StatusError
from pytest_hfbudget.metering.stream import AnswerBody, settle_whole
from pytest_hfbudget.metering.waiting import in_thread, let_the_loop_turn
from pytest_hfbudget.pricing import GENERATE, READS
from pytest_hfbudget.pricing.table import is_below
from pytest_hfbudget.text import Headers, parse_json

FIRST_ERROR = 400
# Error statuses whose body says what to do.
TELLING = frozenset({400, 402, 403, 404, 422, 502, 503})
READ_BY_TOKEN = GENERATE | READS
EVENTS = "text/event-stream"


@dataclass
class HttpParameters:
    """A request in the form that `request.describe` reads, and in which it is changed.

    Attributes:
        json: the body, if it is a JSON object.
        data: the body, if it is anything else.
    """

    url: str
    task: str
    model: str
    headers: dict[str, str] = field(default_factory=dict)
    json: Any = None
    data: Any = None

    @classmethod
    def of(cls, url: str, body: bytes | None, headers: Mapping[str, Any] | None) -> HttpParameters:
        """The parameters of a POST, without a body that can't be read.

        Of its headers it keeps only a session id of the caller's own, which the run's must not
        replace.
        """
        task, model = shape_of(url)
        body = None if _is_encoded(headers or {}) else body  # compressed: its size tells nothing
        own = {k: v for k, v in (headers or {}).items() if k.lower() == SESSION_HEADER.lower()}
        payload = None
        if body and body.lstrip()[:1] == b"{":
            with suppress(ValueError):
                payload = parse_json(body, strictly=True)
        if isinstance(payload, dict):
            return cls(url, task, model, own, json=payload)
        return cls(url, task, model, own, data=body)

    @property
    def streams(self) -> bool:
        """Whether the request asks for a stream."""
        asked = isinstance(self.json, dict) and self.json.get("stream")
        return bool(asked) or self.url.endswith("/generate_stream")


def as_bytes(body: object) -> bytes | None:
    """The body of a request; None if it is read only while it is sent."""
    if body is None:
        return b""
    if isinstance(body, str):
        return body.encode("utf-8", "surrogatepass")
    return bytes(body) if isinstance(body, (bytes, bytearray)) else None


def encoded(payload: Any) -> bytes:
    """The body of a request whose payload was changed."""
    return json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode()


def _is_encoded(headers: Mapping[str, Any]) -> bool:
    return any(k.lower() == "content-encoding" and v != "identity" for k, v in headers.items())


class Adapter:
    """One request of one library, and its answers; the methods are those of most libraries.

    Args:
        original, options: the method that sends the request, and its arguments.

    Attributes:
        timeout: in seconds, as its caller gave it.
        whole: whether the answer is a stream that its client wants to be read to the end.
        altered: whether the caller has passed something that may change the request on its way.
    """

    parameters: HttpParameters
    timeout: object = None
    whole = altered = False

    def __init__(self, original: Callable[..., Any], client: Any, options: dict[str, Any]) -> None:
        self.original, self.client, self.options = original, client, options

    def session(self, client: Any) -> Any:
        """The HTTP session of a client, by which `replay.sees` knows its connections."""
        return client

    def sent_options(self) -> dict[str, Any]:
        """The options with which it is sent."""
        return {**self.options, "stream": True} if self.whole else self.options

    def status(self, answer: Any) -> int:
        """The status of an answer."""
        return int(answer.status_code)

    def headers(self, answer: Any) -> Mapping[str, str]:
        """The headers of an answer."""
        headers: Mapping[str, str] = answer.headers
        return headers

    def body(self, answer: Any) -> bytes | None:
        """The body of an answer; None if it was not read yet."""
        raise NotImplementedError

    def metered(self, answer: Any, body: AnswerBody) -> Any:
        """The answer, changed so that its body passes ``body`` when it is read."""
        raise NotImplementedError

    def refused(self, error: BudgetExceededError) -> Any:
        """The answer that a client gets for a refusal; or raises the refusal."""
        raise error.with_traceback(None) from error.__cause__


class SyncAdapter(Adapter):
    """A request that is sent while its thread waits."""

    def send(self, parameters: Parameters) -> Any:
        """Send what is to be sent, and return the answer."""
        raise NotImplementedError

    def load(self, answer: Any) -> None:
        """Read an answer to its end."""
        raise NotImplementedError

    def read(self, answer: Any) -> str:
        """The text of an answer."""
        self.load(answer)
        return str(answer.text)

    def finish(self, answer: Any) -> Any:
        """Read a metered answer, if its client wants it whole, and return it."""
        if self.whole:
            self.load(answer)
        return answer


class AsyncAdapter(Adapter):
    """A request that a task sends."""

    async def send(self, parameters: Parameters) -> Any:
        """Send what is to be sent, and return the answer."""
        raise NotImplementedError

    async def load(self, answer: Any) -> None:
        """Read an answer to its end."""
        raise NotImplementedError

    async def read(self, answer: Any) -> str:
        """The text of an answer."""
        await self.load(answer)
        return str(answer.text)

    async def finish(self, answer: Any) -> Any:
        """Read a metered answer, if its client wants it whole, and return it."""
        if self.whole:
            await self.load(answer)
        return answer


def send(layer: HttpLayer, request: SyncAdapter) -> Any:
    """Send a paid request: held before, settled after.

    Raises:
        BudgetExceededError: a cap would not hold it. Some clients get an answer instead.
    """
    __tracebackhide__ = True
    if (change := layer.hosts.uptime_request(request.parameters.url)) is not None:
        return _change_uptime(layer, request, change)
    route, retry = ClientRoute(layer.instrumentation, request.session), RetryState()
    sent = _with_model_due(layer, request.parameters)
    try:
        while True:
            found = route.outgoing(request.client, sent, request.parameters.streams, retry.variant)
            if found is None:
                return request.send(sent)
            meter, outgoing = found
            call = begin(meter, _checked(meter, outgoing, request), blocking=True)
            if call is not None and call.wait is not None:
                call.wait.block()
                call = resume(call)
            if call is None:
                with layer.passing(sent.url):
                    return request.send(outgoing.parameters)
            try:
                with outgoing.watch:
                    answer = request.send(call.parameters)
            except BaseException as error:
                failed(call, error)
                if not retry.again(call, error):
                    raise
                continue
            if (status := request.status(answer)) >= FIRST_ERROR:
                told = request.read(answer) if status in TELLING else ""
                refused = StatusError(answer, status, told)
                call.failed(refused)
                if retry.again(call, refused):
                    continue
                return answer
            return request.finish(_answered(call, request, answer))
    except BudgetExceededError as refusal:
        return request.refused(refusal)


async def send_async(layer: HttpLayer, request: AsyncAdapter) -> Any:
    """As `send`, in a task: they differ by an ``await``."""
    __tracebackhide__ = True
    if (change := layer.hosts.uptime_request(request.parameters.url)) is not None:
        return await _change_uptime_async(layer, request, change)
    route, retry = ClientRoute(layer.instrumentation, request.session), RetryState()
    sent = _with_model_due(layer, request.parameters)
    try:
        while True:
            found = route.outgoing(request.client, sent, request.parameters.streams, retry.variant)
            if found is None:
                return await request.send(sent)
            meter, outgoing = found
            if meter.open_calls and outgoing.budgets.capped:
                await let_the_loop_turn()
            call = begin(meter, _checked(meter, outgoing, request), blocking=False)
            if call is not None and call.wait is not None:
                await call.wait.suspend()
                call = resume(call)
            if call is None:
                with layer.passing(sent.url):
                    return await request.send(outgoing.parameters)
            try:
                with outgoing.watch:
                    answer = await request.send(call.parameters)
            except GeneratorExit:
                call.drop()
                raise
            except BaseException as error:
                failed(call, error)
                if not await retry.again_in_task(call, error):
                    raise
                continue
            if (status := request.status(answer)) >= FIRST_ERROR:
                told = await request.read(answer) if status in TELLING else ""
                refused = StatusError(answer, status, told)
                call.failed(refused)
                if await retry.again_in_task(call, refused):
                    continue
                return answer
            return await request.finish(_answered(call, request, answer))
    except BudgetExceededError as refusal:
        return request.refused(refusal)


def _change_uptime(layer: HttpLayer, request: SyncAdapter, change: UptimeRequest) -> Any:
    __tracebackhide__ = True
    watch, status = _uptime_watch(layer, request, change), 0
    try:
        with watch:
            answer = request.send(request.parameters)
        status = request.status(answer)
        return answer
    finally:
        layer.answered(change, watch.result, status)


async def _change_uptime_async(
    layer: HttpLayer, request: AsyncAdapter, change: UptimeRequest
) -> Any:
    __tracebackhide__ = True
    watch, status = _uptime_watch(layer, request, change), 0
    try:
        with watch:
            answer = await request.send(request.parameters)
        status = request.status(answer)
        return answer
    finally:
        await in_thread(layer.answered, change, watch.result, status)


def _uptime_watch(layer: HttpLayer, request: Adapter, change: UptimeRequest) -> UptimeWatch:
    before = partial(layer.take_over, change, request.parameters.json)
    session, url = request.session, request.parameters.url
    return UptimeWatch(layer.instrumentation.probe, session, request.client, url, before)


def _with_model_due(layer: HttpLayer, asked: HttpParameters) -> Parameters:
    """The parameters to send: with the model that was asked for, or that of a due fallback."""
    meter = layer.instrumentation.meter
    model = asked.json.get("model") if isinstance(asked.json, dict) else None
    if meter is None or not isinstance(model, str) or not meter.budgets.active().thresholds:
        return asked
    chooses = any(is_below(asked.url, f"{router}/v1") for router in meter.routers)

    def prepare(model: str, parameters: dict[str, str]) -> HttpParameters:
        if not chooses and parameters["model"] != asked.json["model"]:
            raise ValueError("the provider has a name of its own for each model")
        return changed(asked, json={**asked.json, **parameters})

    parameters, named = prepared(
        meter, prepare, "auto", {"model": asked.url, "parameters": {"model": model}}
    )
    vars(parameters)[ASKED] = named
    return parameters


def _checked(meter: Meter, outgoing: OutgoingCall, request: Adapter) -> OutgoingCall:
    """The description of a call, completed by the time-out of the request.

    Raises:
        BudgetExceededError: the call is under a cap, and the size of its prompt is not known.
    """
    __tracebackhide__ = True
    asked = request.parameters
    if outgoing.budgets.paid and (unknown := _unknown_size(asked)):
        model = printable_model(asked.model or asked.url)
        error = UnseenCallError(f"{model}: {unknown}", model=model)
        raise meter.refuse_unread(error, model)
    outgoing.watch.altered, outgoing.watch.entered = request.altered, True
    return outgoing._replace(timeout=request.timeout)


def _unknown_size(asked: HttpParameters) -> str:
    """Why the size of a prompt can't be known before it is sent; empty if it can."""
    if asked.json is None and asked.data is None and asked.task in READ_BY_TOKEN:
        return (
            "the body of the request is compressed, or read only while it is sent, so no cap can "
            "hold the call. The call was not sent. Pass the body as bytes, as text or as json=…."
        )
    if asked.json is None and asked.data and asked.task in GENERATE:
        return (
            "pytest-hfbudget can't read the limits in the body of the request, so no cap can hold "
            "the call. The call was not sent. The body must be a JSON object in UTF-8 without "
            "duplicate keys. Pass it as json=…."
        )
    return ""


def _answered(call: Call, request: Adapter, answer: Any) -> Any:
    """The answer, which is settled now, or else when it is read.

    Raises:
        BudgetExceededError: it was cut off by the limit that a cap had set.
    """
    call.headers(Headers(answer))
    whole = request.body(answer)
    body = AnswerBody(call, events=_is_events(request.headers(answer)))
    if whole is None:
        return request.metered(answer, body)
    if body.events:
        body.feed(whole)
        body.end()
        return answer
    settle_whole(call, whole)
    return answer


def _is_events(headers: Mapping[str, str]) -> bool:
    try:
        kind = headers.get("content-type") or ""
        return isinstance(kind, str) and kind.lower().startswith(EVENTS)
    except Exception:  # a mock
        return False
