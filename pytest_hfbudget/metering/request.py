"""What a call asks for: a request of huggingface_hub, read into a `CallRequest`; and its draft."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from copy import copy
from decimal import Decimal
from functools import lru_cache
from typing import Any, NamedTuple, Protocol, TypeVar

from pytest_hfbudget.ledger import Charge
from pytest_hfbudget.metering.budget_context import ActiveBudgets
from pytest_hfbudget.metering.limits import DEFAULT_VARIANT, RequestVariant
from pytest_hfbudget.metering.prompt_size import InputBound, input_bound
from pytest_hfbudget.metering.replay import SendWatch
from pytest_hfbudget.pricing import CallRequest, split_model
from pytest_hfbudget.pricing.table import is_below
from pytest_hfbudget.text import parse_json, printable, public_url

CONTAINERS = (dict, list, tuple)

LIMITS = frozenset({"max_tokens", "max_completion_tokens", "max_new_tokens", "max_output_tokens"})
ANSWERS = frozenset({"n", "best_of", "num_return_sequences"})

# Each provider has its own word for the number of images.
PICTURES = frozenset(
    {
        *("n", "num_images", "num_outputs", "num_images_per_prompt"),
        *("num_samples", "max_images", "samples"),
    }
)
BATCHES = frozenset({"batch_size"})
# The tools that the caller runs; all others run at the service.
OWN_TOOLS = frozenset({"function", "custom"})
# How a request of the responses API names a prompt, or a part of one, that the service has kept.
REMEMBERED, REFERENCE = ("previous_response_id", "conversation"), "item_reference"
# Parameters that have the service search, and add what it finds to the prompt.
SEARCHES = frozenset({"connectors", "plugins", "search_parameters", "web_search_options"})
ONE_NUMBER = "Pass one whole number instead."


class UnreadableLimitError(ValueError):
    """A request whose output or prompt can't be bounded; its arguments: why, and what to do."""


class AskedModel(NamedTuple):
    """The model that a call asks for, which its parameters no longer name.

    Attributes:
        model: its Hub id; the payload has the provider's own id.
        provider: the provider that is asked; ``auto`` if the router chooses.
        instead_of: the model that the caller asked for, if a fallback has replaced it.
    """

    model: str | None = None
    provider: str | None = None
    instead_of: str = ""


UNKNOWN_MODEL = AskedModel()


class Parameters(Protocol):
    """huggingface_hub's RequestParameters, as far as they are used here."""

    url: str
    task: str
    model: str
    headers: dict[str, Any]
    json: Any
    data: Any


P = TypeVar("P", bound=Parameters)


def changed(parameters: P, **values: Any) -> P:
    """A copy of huggingface_hub's RequestParameters with some fields replaced."""
    if not hasattr(type(parameters), "__dataclass_fields__"):
        other = copy(parameters)  # a stand-in of a test
        vars(other).update(values)
        return other
    other = object.__new__(type(parameters))  # as `replace`, without its look at every field
    own = vars(other)
    own.update(vars(parameters))
    for name, value in values.items():
        if name in own:
            own[name] = value
    return other


def with_own_payload(parameters: P) -> P:
    """The same parameters with a payload of their own, which another thread can't change."""
    payload = parameters.json
    return changed(parameters, json=_copy(payload) if isinstance(payload, CONTAINERS) else payload)


def _copy(value: Any) -> Any:
    """A deep copy of a dictionary, list or tuple, which copies only such values."""
    copied = dict(value) if isinstance(value, dict) else list(value)
    parts: list[Any] = [copied]
    while parts:
        part = parts.pop()
        for key, item in part.items() if isinstance(part, dict) else enumerate(part):
            if isinstance(item, CONTAINERS):
                part[key] = dict(item) if isinstance(item, dict) else list(item)
                parts.append(part[key])
    return copied


def describe(
    parameters: Parameters,
    *,
    routers: tuple[str, ...],
    asked: AskedModel,
    stream: bool,
    timeout: object = None,
    bound: Callable[[str, str | None], InputBound] | None = None,
) -> CallRequest:
    """The description of a request that is about to be sent.

    Args:
        routers: base URLs of the Hugging Face router.
        asked: the model as the caller named it; a named provider's payload has that provider's
            own id instead.
        timeout: the client's own, in seconds; anything but a number counts as no time-out.
        bound: returns the bound on the input by model and provider; without it, bytes bound it.
    """
    payload = parameters.json if isinstance(parameters.json, dict) else json_object(parameters.data)
    # Anything but a string, such as a mock, is no name.
    named = parameters.task, asked.model, parameters.model, payload.get("model"), asked.provider
    task, hub_model, own_model, posted, provider = [
        name if isinstance(name, str) else "" for name in named
    ]
    model, chosen = _addressed(
        parameters.url, routers, hub_model or own_model, posted, provider or None
    )
    body = parameters.json, parameters.data
    tokens = bound(model, chosen) if bound else InputBound(input_bound(*body))
    unreadable = ""
    try:
        refuse_service_input(payload)
        limit, several = output_limit(payload), answers(payload, task)
    except UnreadableLimitError as error:
        limit, several, unreadable = None, 1, "\n".join(error.args)
    return CallRequest(  # by position, which is twice as fast
        task,
        model,
        chosen,
        parameters.url,
        tokens.most,
        limit,
        max(several, 1),
        stream,
        None if timeout is None else _seconds(timeout),
        unreadable,
        *tokens[1:],
    )


@lru_cache(maxsize=256)  # a suite calls a handful of models, each of them again and again
def _addressed(
    url: str, routers: tuple[str, ...], asked: str | None, posted: str, provider: str | None
) -> tuple[str, str | None]:
    """The model and the provider that a request is addressed to.

    The model has no credentials or control characters, so it can be printed.
    """
    model, provider = _model_and_provider(url, routers, asked, posted, provider)
    return printable_model(model), provider


def _model_and_provider(
    url: str, routers: tuple[str, ...], asked: str | None, posted: str, provider: str | None
) -> tuple[str, str | None]:
    routed = next((base for base in routers if is_below(url, base)), None)
    name = asked or posted or url
    if routed is None and (provider in (None, "hf-inference") or _is_url(name)):
        return url, None
    if _is_url(name):  # the router's own URL was given as base_url
        name, provider = posted or name, None
    model, pinned = split_model(name)
    chosen = provider if provider != "auto" else None
    return model, pinned or chosen or _provider_in_path(url, routed)


def fits(body: bytes, held: CallRequest, size: Callable[[object], int]) -> bool:
    """Whether the body of a request asks for no more than what was held for it.

    Args:
        size: returns the most input tokens of a payload.
    """
    payload = json_object(body)
    if not payload:
        return len(body) <= held.input_bound
    try:
        limit, several = output_limit(payload), answers(payload, held.task)
    except UnreadableLimitError:
        return False
    unlimited = held.generates and held.max_output is not None and limit is None
    return (
        not unlimited
        and (limit or 0) <= (held.max_output if held.max_output is not None else limit or 0)
        and several <= held.n
        and size(payload) <= held.input_bound
    )


def payload_of(parameters: Parameters) -> Mapping[str, Any]:
    """The JSON object that is posted; empty if the body is something else."""
    return parameters.json if isinstance(parameters.json, dict) else json_object(parameters.data)


def json_object(data: object) -> Mapping[str, Any]:
    """The JSON object in a body of bytes; empty if it is something else, such as a picture."""
    if not isinstance(data, (bytes, bytearray)) or not data[:64].lstrip().startswith(b"{"):
        return {}
    try:
        value = parse_json(data)
    except ValueError:
        return {}  # a picture may begin with any byte
    return value if isinstance(value, dict) else {}


def _seconds(timeout: object) -> float | None:
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        return None
    return float(timeout) if math.isfinite(timeout) and timeout > 0 else None


def printable_model(model: str) -> str:
    """A model's name or URL, without credentials and control characters."""
    return printable(public_url(model) if _is_url(model) else model)


def _is_url(name: str) -> bool:
    return name.startswith(("http://", "https://"))


def _provider_in_path(url: str, router: str | None) -> str | None:
    """The provider in a path of the router, which comes first; None for the router's own API."""
    if router is None:
        return None
    first = url[len(router) :].lstrip("/").split("/", 1)[0]
    return first if first not in ("v1", "") else None


class OutgoingCall(NamedTuple):
    """Everything about a call that is known when it is made.

    Attributes:
        watch: sees whether it leaves this process.
        asked: the model as the caller named it.
        timeout: the client's own, which may be of any type.
        budgets: those around the calling code.
        where: what is running, if no test is.
        at: when it was made, in unix seconds.
        started: the same by the meter's clock, in seconds.
        variant: how it is sent, as far as the plugin decides that.
        session_id: the inference session that the router bills it to; empty for none.
    """

    parameters: Parameters
    watch: SendWatch
    asked: AskedModel
    stream: bool
    timeout: object
    budgets: ActiveBudgets
    where: str
    at: float
    started: float
    variant: RequestVariant = DEFAULT_VARIANT
    session_id: str = ""


def draft_of(outgoing: OutgoingCall, request: CallRequest, endpoint: str | None) -> Charge:
    """The charge of a call, as far as that is known before it is sent."""
    test = outgoing.budgets.test
    used = 0, 0, None, "", "", False, 0.0  # nothing yet
    return Charge(  # by position, which is twice as fast
        test.id if test else None,
        request.task,
        request.model,
        request.provider,
        *used,
        "" if test else outgoing.where,
        outgoing.budgets.keys,
        0,
        False,
        outgoing.asked.instead_of,
        outgoing.at,
        endpoint,
        0,
        0.0,
        outgoing.session_id,
    )


# --- what the caller asks for: its output limit, how many answers


def output_limit(payload: Mapping[str, Any]) -> int | None:
    """The caller's own limit on the output tokens of one answer: the highest, if it sets several.

    Servers differ in which of several they follow.

    Raises:
        UnreadableLimitError: one is not a number; or one means no limit, and another is a limit.
    """
    given = _numbers(payload, LIMITS)
    # Servers read 0 and -1 as no limit at all.
    if not given or (most := max(given)) <= 0:
        return None
    if min(given) <= 0:
        raise UnreadableLimitError(
            f"limits of {min(given)} and {most} contradict each other", ONE_NUMBER
        )
    return most


def answers(payload: Mapping[str, Any], task: str) -> int:
    """How many answers are asked for, by whichever name a provider has for that."""
    if task == "text-generation":
        return max([1, *_numbers(payload, ANSWERS)]) * _prompts(payload)
    if not task.endswith("to-image"):
        return max(_numbers(payload, ANSWERS) or [1])
    each = max([1, *_numbers(payload, PICTURES)]) * max([1, *_numbers(payload, BATCHES)])
    return each * _prompts(payload)


def _prompts(payload: Mapping[str, Any]) -> int:
    """How many prompts a request has. Each is answered. A list of token ids is one prompt."""
    given = (payload.get(name) for name in ("prompt", "inputs"))
    lists = [len(g) for g in given if isinstance(g, list) and g and type(g[0]) is not int]
    return max(lists, default=1)


def refuse_service_input(payload: Mapping[str, Any]) -> None:
    """Refuse a request that lets the service add to the prompt, which then can't be bounded.

    Raises:
        UnreadableLimitError: a tool runs at the service; the service searches; or it has kept a
            part of the prompt.
    """
    for name in SEARCHES.intersection(payload):
        if payload[name] not in (None, False, []):  # an empty object asks for it, too
            raise UnreadableLimitError(
                f"with {name} the service may search, and add the results to the prompt",
                "Leave it out, and put into the messages what the model is to read.",
            )
    tools, said = payload.get("tools"), payload.get("input")
    for tool in tools if isinstance(tools, list) else ():
        kind = tool.get("type") if isinstance(tool, dict) else None
        if isinstance(kind, str) and kind not in OWN_TOOLS:
            raise UnreadableLimitError(
                f"the service runs the tool {printable(kind)} and adds its result to the prompt",
                "Offer tools of the type function, and call them yourself.",
            )
    kept = [name for name in REMEMBERED if payload.get(name)]
    kept += ["prompt"] if isinstance(payload.get("prompt"), dict) else []
    for item in said if isinstance(said, list) else ():
        if isinstance(item, dict) and item.get("type") == REFERENCE:
            kept.append(REFERENCE)
    if kept:
        raise UnreadableLimitError(
            f"{kept[0]} lets the service add what it remembers to the prompt",
            "Send the whole prompt instead.",
        )


def _numbers(payload: Mapping[str, Any], names: frozenset[str]) -> list[int]:
    """The numbers by these names, rounded up, wherever servers look for them.

    Raises:
        UnreadableLimitError: one of them is not a number.
    """
    found: list[int] = []
    for part in (payload, payload.get("parameters"), payload.get("input")):
        if part and isinstance(part, (dict, Mapping)) and not names.isdisjoint(part):
            for name, value in part.items():
                if name in names and value is not None:
                    found.append(value if type(value) is int else _rounded_up(name, value))
    return found


def _rounded_up(name: str, value: Any) -> int:
    try:
        number: int = math.ceil(Decimal(value) if isinstance(value, str) else value)
    except (ArithmeticError, TypeError, ValueError):
        raise UnreadableLimitError(f"{name}={value!r} is not a number", ONE_NUMBER) from None
    return number
