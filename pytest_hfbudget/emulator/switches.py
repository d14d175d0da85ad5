"""The switches that tests can set: facts about the services that no public source states.

Each field's default is the reading that costs most, or else the one that is seen most often; each
comment says what changes for the caller.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args, get_type_hints


@dataclass(frozen=True)
class Switches:
    """One immutable set of switches; `changed` makes the next one."""

    # -- tokens of the Authorization header
    bad_tokens: tuple[str, ...] = ("hf_wrong",)  # 401 everywhere; add one here to revoke it
    limited_tokens: tuple[str, ...] = ("hf_limited",)  # 403 on the endpoints API
    no_infer_tokens: tuple[str, ...] = ("hf_noinfer",)  # 403 on an endpoint's own URL

    no_billing_tokens: tuple[str, ...] = ("hf_nobilling",)  # 403 on what the Hub says of the bill

    # -- chat
    natural_tokens: int = 32  # length of an answer that nothing cuts short
    answer_delay_s: float = 0.0  # before the first byte of every model answer
    chunk_delay_s: float = 0.0  # before each chunk of a stream
    provider_header: bool = True  # x-inference-provider on the router's answers
    compute_time_header: bool = True  # x-compute-time on hf-inference answers
    compute_seconds: str = "0.5"  # what one hf-inference call is billed for
    usage: Literal["always", "never"] = "always"  # usage in answers that are not streamed
    stream_usage: Literal[
        "by_provider",
        "on_request",
        "first_chunk",
        "finish_chunk",
        "every_chunk",
        "never",
        "rejects_options",
    ] = "by_provider"
    limit_names: Literal["any", "max_tokens", "max_completion_tokens", "none"] = "any"  # else 400
    lenient_numbers: bool = False  # 20.0 and "20" are 20, instead of a 400
    zero_limit: Literal["reject", "none"] = (
        "reject"  # what a limit of 0 tokens is: 400, or no limit
    )
    cached_tokens: int = 0  # of each prompt of a chat, as far as it is that long
    cached_usage: Literal["nested", "flat", "null"] = "nested"  # how usage tells them
    cost_in_usage: tuple[str, ...] = ("deepinfra",)  # providers whose usage has estimated_cost
    reasoning_usage: Literal["within", "beside"] = "within"  # of completion_tokens
    recount: Literal["alike", "more"] = "alike"  # of a prompt: one token more each time
    # Of an image: 85; of a PNG one for every 28 x 28 pixels, what Qwen3-VL makes, or what Together
    # counts; or 85 and some that its bytes decide
    image_tokens: Literal["flat", "by_size", "qwen3_vl", "by_tiles", "by_content"] = "flat"
    template_tokens: tuple[str, ...] = ()  # "PROVIDER=N": tokens that its template adds
    disconnect_bills: Literal["generated", "full"] = "generated"  # a stream dropped by the client

    compute_tokens_header: bool = True  # x-compute-tokens on what was only read, as of TEI
    polls: int = 0  # how often a queue says that its work is not done

    zero_shot: Literal["by_client", "list", "columns"] = "by_client"  # before 1.0 columns

    # -- the router's choice
    routing: str = "policy"  # "policy", "round_robin", or "pin:PROVIDER"
    preferred_providers: tuple[str, ...] = ()  # the user's order, for ":preferred"
    default_provider: str = "together"  # serves unconfigured models
    wraps_single_model: bool = False  # /v1/models/ID answers {"data": model}
    error_provider_serves: bool = False  # a pinned provider whose status is "error" answers 503

    # -- billing of endpoints
    billing_minute_s: float = 60.0  # real seconds in a billing minute
    minute_rounding: Literal["up", "nearest", "exact"] = "up"  # of each replica's span
    bills_pending: bool = False
    bills_updating: bool = True
    bills_failed: bool = False  # failed and updateFailed
    billing_stops: Literal["ack", "paused_state"] = "ack"  # when a pause ends the span

    # -- what the Hub says of the bill
    billing_lag_s: float = 0.0  # after a call's end, until it is told
    placeholder_usd: str = "0"  # what is told of a call until then; of 0 nothing is told
    cent_rounding: Literal["none", "up", "nearest"] = "none"  # of a session's cents, to whole ones
    billing_page_limit: int = 0  # sessions per page; 0: one page
    organizations: tuple[str, ...] = ()  # namespaces whose endpoints no person pays for
    renewal_day: int = 1  # of the month, on which the billing period begins

    # -- life of endpoints
    resume_while_starting: Literal["already_running", "ok"] = "already_running"
    resume_rewrites_scaling: bool = False  # pause sets replicas to 0..0, resume to 1..1
    update_resumes: bool = False  # a PUT on a paused endpoint starts it
    quota_status: int = 400  # of a resume without quota
    failed_inference_status: int = 500  # of a call to a failed endpoint
    idle_minute_s: float = 60.0  # real seconds in a minute of scaleToZeroTimeout
    scale_to_zero_late_s: float = 0.0  # added before the automatic scale to zero
    delete_lag_s: float = 0.0  # how long a deleted endpoint can still be read
    page_limit: int = 20  # endpoints per page of the list

    def changed(self, values: Mapping[str, Any]) -> Switches:
        """A copy with `values` put in.

        Raises ValueError, naming the switches there are, when a name or a value is not known.
        """
        known = {field.name for field in fields(self)}
        for name in values:
            if name not in known:
                raise ValueError(f"no switch {name!r}; the switches are {', '.join(sorted(known))}")
        return replace(self, **{name: _fitting(name, value) for name, value in values.items()})


def _fitting(name: str, value: Any) -> Any:
    """`value` in the type of the switch `name`."""
    kind = get_type_hints(Switches)[name]
    choices = get_args(kind)
    if choices and all(isinstance(choice, str) for choice in choices):
        if value not in choices:
            raise ValueError(f"{name} is one of {', '.join(choices)}, not {value!r}")
        return value
    if isinstance(value, list):
        return tuple(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    expected = tuple if choices else kind
    if not isinstance(value, expected):
        raise ValueError(f"{name} is a {expected.__name__}, not {value!r}")
    return value
