"""The tap: the one place that knows how huggingface_hub sends a paid call.

Every task of both clients passes through ``_inner_post``, in every release since 0.28, while the
HTTP library below it changed twice (requests, httpx, httpx2). This file alone names those
modules, and it imports none of them: it waits until somebody else does.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from pytest_hfbudget.errors import BudgetExceededError, ConfigError, HFBudgetError
from pytest_hfbudget.metering.call import Call
from pytest_hfbudget.metering.importing import PostImport
from pytest_hfbudget.metering.meter import Meter
from pytest_hfbudget.metering.stream import MeteredAsyncStream, MeteredStream

logger = logging.getLogger("pytest_hfbudget")

SYNC = "huggingface_hub.inference._client"
ASYNC = "huggingface_hub.inference._generated._async_client"
HELPERS = "huggingface_hub.inference._providers._common"

KNOWN_SIGNATURE = ("self", "request_parameters", "stream")

# The call that is being posted in this context, for the response's headers to find it.
_posting: ContextVar[Call | None] = ContextVar("hfbudget_posting", default=None)

Current = Callable[[], "Meter | None"]


@dataclass
class Tap:
    """Wraps ``_inner_post`` of both clients while it is installed.

    Attributes:
        current: the meter that calls go through now; None lets them pass.
        problem: why calls can't be seen, where huggingface_hub is one that is not known.
    """

    current: Current
    problem: str = ""
    _originals: list[tuple[Any, str, Any]] = field(default_factory=list)
    _watch: PostImport | None = None

    @property
    def in_place(self) -> bool:
        """Whether a client has been imported, so that calls are to be expected."""
        return bool(self._originals)

    def install(self) -> None:
        """Wrap what is imported already, and the rest as soon as it is."""
        self._watch = PostImport(
            {SYNC: self._wrap_sync, ASYNC: self._wrap_async, HELPERS: self._wrap_helpers}
        )
        self._watch.install()

    def uninstall(self) -> None:
        """Put back what was there, unless somebody has wrapped it since."""
        if self._watch is not None:
            self._watch.uninstall()
            self._watch = None
        while self._originals:
            owner, name, original = self._originals.pop()
            installed = vars(owner).get(name)
            if getattr(installed, "__wrapped__", None) is original:
                setattr(owner, name, original)
            else:
                logger.warning("hfbudget left %s as it is: it was wrapped again", name)

    def _wrap_sync(self, module: ModuleType) -> None:
        self._wrap_client(module, "InferenceClient", metered)

    def _wrap_async(self, module: ModuleType) -> None:
        self._wrap_client(module, "AsyncInferenceClient", metered_async)

    def _wrap_client(
        self, module: ModuleType, name: str, wrapper: Callable[[Any, Current], Any]
    ) -> None:
        client = getattr(module, name, None)
        original = getattr(client, "_inner_post", None)
        if problem := _unknown(original, name):
            self.problem = problem
            meter = self.current()
            if meter is not None and meter.payer.capped():
                raise ConfigError(problem)
            logger.warning("%s Nothing is counted.", problem)
            return
        self._replace(client, "_inner_post", wrapper(original, self.current))
        raise_for_status = getattr(module, "hf_raise_for_status", None)
        if raise_for_status is not None:
            self._replace(module, "hf_raise_for_status", noting_headers(raise_for_status))

    def _wrap_helpers(self, module: ModuleType) -> None:
        helper = getattr(module, "TaskProviderHelper", None)
        prepare = getattr(helper, "prepare_request", None)
        if prepare is not None:
            self._replace(helper, "prepare_request", noting_names(prepare))

    def _replace(self, owner: Any, name: str, wrapper: Any) -> None:
        self._originals.append((owner, name, wrapper.__wrapped__))
        setattr(owner, name, wrapper)


def _unknown(method: Any, client: str) -> str | None:
    """What is wrong with a method that is not the ``_inner_post`` which is known."""
    known = method is not None and tuple(inspect.signature(method).parameters) == KNOWN_SIGNATURE
    if known:
        return None
    from importlib.metadata import version

    return (
        f"huggingface_hub {version('huggingface_hub')} sends its calls in a way that "
        f"pytest-hfbudget does not know ({client}._inner_post), so it can't cap them. "
        "Install a release that is supported (0.34 to 2.4), or a newer pytest-hfbudget."
    )


def _begin(
    meter: Meter | None, parameters: Any, stream: bool, ask_usage: bool
) -> tuple[Call | None, Any]:
    """The call, if it is metered, and what is to be posted in any case."""
    __tracebackhide__ = True
    if meter is None:
        return None, parameters
    hub_model, provider = vars(parameters).get("hfbudget_named", (None, None))
    parameters = meter.routed(parameters)
    try:
        call = meter.begin(
            parameters, hub_model=hub_model, provider=provider, stream=stream, ask_usage=ask_usage
        )
    except BudgetExceededError as error:
        # How a refusal came about inside of here tells nobody anything; who called does.
        raise error.with_traceback(None) from None
    return call, call.parameters if call else parameters


@dataclass
class Attempts:
    """When a call that failed is sent once more: for two reasons, for each of them once."""

    ask_usage: bool = True
    revived: bool = False

    def again(self, call: Call, error: BaseException) -> bool:
        """Whether to try again, after having done away with what was in the way.

        Raises:
            BudgetExceededError: the endpoint that was called is paused for the sake of a cap.
        """
        if not isinstance(error, Exception):
            return False  # a Ctrl-C, a cancelled task
        if call.usage_was_rejected(error):
            self.ask_usage = False  # only the plugin had asked for it
            return True
        try:
            self.revived = not self.revived and call.revive(error)
        except HFBudgetError as refusal:
            # Not chained to the HTTP error: its frames hold the request's headers, and pytest
            # would show the token in them.
            raise refusal.with_traceback(None) from None
        return self.revived


def metered(original: Any, current: Current) -> Any:
    """``InferenceClient._inner_post``, with every call held before and settled after."""

    @functools.wraps(original)
    def _inner_post(self: Any, request_parameters: Any, *, stream: bool = False) -> Any:
        __tracebackhide__ = True
        attempts = Attempts()
        while True:
            call, posted = _begin(current(), request_parameters, stream, attempts.ask_usage)
            if call is None:
                return original(self, posted, stream=stream)
            token = _posting.set(call)
            try:
                answer = original(self, posted, stream=stream)
            except BaseException as error:
                call.failed(error)
                if not attempts.again(call, error):
                    raise
                continue
            finally:
                _posting.reset(token)
            return MeteredStream(call, answer) if stream else _whole(call, answer)

    return _inner_post


def metered_async(original: Any, current: Current) -> Any:
    """``AsyncInferenceClient._inner_post``, with every call held before and settled after."""

    @functools.wraps(original)
    async def _inner_post(self: Any, request_parameters: Any, *, stream: bool = False) -> Any:
        __tracebackhide__ = True
        attempts = Attempts()
        while True:
            call, posted = _begin(current(), request_parameters, stream, attempts.ask_usage)
            if call is None:
                return await original(self, posted, stream=stream)
            token = _posting.set(call)
            try:
                answer = await original(self, posted, stream=stream)
            except BaseException as error:
                call.failed(error)
                if not await _again(attempts, call, error):
                    raise
                continue
            finally:
                _posting.reset(token)
            return MeteredAsyncStream(call, answer) if stream else _whole(call, answer)

    return _inner_post


async def _again(attempts: Attempts, call: Call, error: BaseException) -> bool:
    if call.leased is None:
        return attempts.again(call, error)
    # An endpoint may take minutes to come back: other tasks go on meanwhile.
    return await asyncio.to_thread(attempts.again, call, error)


def _whole(call: Call, body: Any) -> Any:
    call.answered(body)
    return body


def noting_headers(original: Any) -> Any:
    """``hf_raise_for_status``, where a response is in hand: its headers say who answered."""

    @functools.wraps(original)
    def hf_raise_for_status(response: Any, *args: Any, **kwargs: Any) -> Any:
        call = _posting.get()
        if call is not None:
            call.headers(response.headers)
        return original(response, *args, **kwargs)

    return hf_raise_for_status


def noting_names(original: Any) -> Any:
    """``TaskProviderHelper.prepare_request``, which still knows the model by its Hub id.

    What it makes carries the provider's own id of the model, and no provider.
    """

    @functools.wraps(original)
    def prepare_request(self: Any, **kwargs: Any) -> Any:
        parameters = original(self, **kwargs)
        vars(parameters)["hfbudget_named"] = (kwargs.get("model"), getattr(self, "provider", None))
        return parameters

    return prepare_request
