"""What it means when the control plane does not do what it was asked."""

from __future__ import annotations

import email.utils
import json
from http import HTTPStatus
from typing import Any

from pytest_hfbudget.endpoints.retry import SYSTEM_CLOCK
from pytest_hfbudget.endpoints.transport import HttpAnswer
from pytest_hfbudget.errors import EndpointError
from pytest_hfbudget.text import printable

_NOT_DONE = frozenset({425, 429, 503})  # refused at the door: the server did not begin


class ControlPlaneError(EndpointError):
    """A request to the control plane that did not do what it should.

    Attributes:
        status: HTTP status of the last answer; None when there was none.
        maybe_done: True when the server may have acted all the same.
        retry_after: seconds that the server asked to wait, if it did.
        lasting: there is no use in trying again, although the server was not even asked.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        maybe_done: bool = False,
        retry_after: float | None = None,
        lasting: bool = False,
    ) -> None:
        super().__init__(message)
        self.status, self.maybe_done, self.retry_after = status, maybe_done, retry_after
        self.lasting = lasting

    @property
    def gone(self) -> bool:
        """The endpoint does not exist (any more)."""
        return self.status == HTTPStatus.NOT_FOUND

    @property
    def denied(self) -> bool:
        """The token is not accepted, or may not do this."""
        return self.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)


def refusal(what: str, answer: HttpAnswer) -> ControlPlaneError:
    """The error for an answer about ``what`` that is not a success."""
    return ControlPlaneError(
        _sentence(what, answer),
        status=answer.status,
        maybe_done=answer.status >= HTTPStatus.INTERNAL_SERVER_ERROR
        and answer.status not in _NOT_DONE,
        retry_after=_retry_after(answer.headers.get("retry-after")),
    )


def _sentence(what: str, answer: HttpAnswer) -> str:
    namespace = what.partition("/")[0]
    if answer.status == HTTPStatus.UNAUTHORIZED:
        return (
            f"{what}: the token was refused (HTTP 401); set HF_TOKEN to one that is valid, "
            "from https://huggingface.co/settings/tokens."
        )
    if answer.status == HTTPStatus.FORBIDDEN:
        return (
            f"{what}: the token may not do this (HTTP 403: {_message(answer)}); it needs the "
            'permission "Manage Inference Endpoints" for this namespace.'
        )
    if answer.status == HTTPStatus.NOT_FOUND and "/" in what:
        return (
            f'there is no endpoint "{what}" (HTTP 404); `hfbudget status {namespace}` lists yours.'
        )
    return f"{what}: the control plane answered HTTP {answer.status}: {_message(answer)}."


def json_object(body: bytes) -> dict[str, Any] | None:
    """A body that is a JSON object; None for anything else."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _message(answer: HttpAnswer) -> str:
    said = json_object(answer.body)
    text = answer.body.decode("utf-8", "replace")
    if said is not None:
        text = said.get("error") or said.get("message") or said.get("detail") or ""
    text = " ".join(str(text).split())
    return printable(text[:300].rstrip(".")) or "no reason given"


def _retry_after(value: str | None) -> float | None:
    """Seconds; the header has a number or a date (RFC 9110, section 10.2.3)."""
    if not value:
        return None
    try:
        if value.strip().isdecimal():
            return float(value)
        at = email.utils.parsedate_to_datetime(value).timestamp()
    except (ValueError, OverflowError):
        return None
    return max(at - SYSTEM_CLOCK.time(), 0.0)
