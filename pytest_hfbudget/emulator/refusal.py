"""An answer other than success, raised from wherever the reason is found."""

from __future__ import annotations

from typing import Any

_FIRST_SERVER_ERROR = 500


class Refusal(Exception):
    """Ends a request with `status` and a JSON body."""

    def __init__(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        super().__init__(f"{status}: {body}")
        self.status = status
        self.body = body
        self.headers = headers or {}


def refused(status: int, message: str) -> Refusal:
    """A refusal in the Hub's own shape: an object with one `error` text."""
    return Refusal(status, {"error": message})


def number(said: object, name: str) -> float:
    """What a request said, as a number. Raises Refusal (400)."""
    try:
        return float(str(said))
    except ValueError as error:
        raise refused(400, f"{name} is a number, not {said!r}") from error


def refused_by_model(status: int, message: str, code: str) -> Refusal:
    """A refusal in the shape of the OpenAI API, which chat servers use."""
    kind = "invalid_request_error" if status < _FIRST_SERVER_ERROR else "server_error"
    return Refusal(status, {"error": {"message": message, "type": kind, "code": code}})
