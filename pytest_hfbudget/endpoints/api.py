"""A client of the Inference Endpoints API, version 2, with the operations that a run needs.

It does not use huggingface_hub, because a suite under test may replace or block that client, and
the pause must still work. Routes and answers are those of the public API description,
https://api.endpoints.huggingface.cloud/openapi.json.
"""

from __future__ import annotations

import email.utils
import json
from collections.abc import Callable, Iterator, Mapping
from http import HTTPStatus
from json import dumps  # by name: a test may replace the module's
from typing import Any, TypeAlias
from urllib.parse import quote, urlencode

from pytest_hfbudget import __version__
from pytest_hfbudget.endpoints import Endpoint, objects, split_name
from pytest_hfbudget.endpoints.retry import RetryPolicy
from pytest_hfbudget.endpoints.transport import (
    HttpAnswer,
    NoAnswerError,
    Route,
    Transport,
    Urllib3Transport,
)
from pytest_hfbudget.errors import EndpointError
from pytest_hfbudget.locks import SYSTEM_CLOCK, Clock
from pytest_hfbudget.text import printable, public_url

_NOT_DONE = frozenset({425, 429, 503})  # with these the server has not begun the request


class ControlPlaneError(EndpointError):
    """A request to the control plane that failed.

    Attributes:
        status: HTTP status of the last answer; None without an answer.
        maybe_done: whether the server may have acted all the same.
        retry_after: seconds that the server asked to wait; None if it did not.
        lasting: the request was not sent, and a retry would fail in the same way.
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
        """Whether the endpoint does not exist, or no longer exists."""
        return self.status == HTTPStatus.NOT_FOUND

    @property
    def denied(self) -> bool:
        """Whether the server refused the token, or the token lacks a permission."""
        return self.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)


def refusal(what: str, answer: HttpAnswer) -> ControlPlaneError:
    """The error for an answer that is no success; ``what`` names the endpoint or the list."""
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
    """The JSON object in a body; None if the body is anything else."""
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
    """The seconds in a Retry-After header, a number or a date (RFC 9110, section 10.2.3)."""
    if not value:
        return None
    try:
        if value.strip().isdecimal():
            return float(value)
        at = email.utils.parsedate_to_datetime(value).timestamp()
    except (ValueError, OverflowError):
        return None
    return max(at - SYSTEM_CLOCK.time(), 0.0)


_OK = range(200, 300)
_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
_MOST_PAGES = 1000

_Usable: TypeAlias = Callable[[Mapping[str, Any]], bool]


def _is_any(answer: Mapping[str, Any]) -> bool:
    return bool(answer)


def _is_list(page: Mapping[str, Any]) -> bool:
    return isinstance(page.get("items"), list)  # a missing list is an error, an empty one is not


class ControlPlane:
    """A client of one control plane with one token. Safe to share between threads.

    Each operation is retried within ``retry.total_s`` if a second request can do no harm. All
    operations raise `ControlPlaneError`. No message contains the token.
    """

    def __init__(
        self,
        base_url: str,
        token: str | None,
        *,
        retry: RetryPolicy = RetryPolicy(),
        route: Route | None = None,
        transport: Transport | None = None,
        clock: Clock = SYSTEM_CLOCK,
        agent: str = "run",
    ) -> None:
        """``agent`` names the kind of process in the User-Agent header."""
        self.base_url = base_url.rstrip("/")
        self._token, self._retry, self._clock, self._agent = token, retry, clock, agent
        self._transport = transport or Urllib3Transport(
            route or Route.find(self.base_url), clock=clock
        )

    def __repr__(self) -> str:
        return f"ControlPlane({public_url(self.base_url)!r})"

    def with_retry(self, retry: RetryPolicy) -> ControlPlane:
        """The same client, with the same connections and another retry policy."""
        return ControlPlane(
            self.base_url,
            self._token,
            retry=retry,
            transport=self._transport,
            clock=self._clock,
            agent=self._agent,
        )

    def get(self, name: str) -> Endpoint:
        """The endpoint as it is now."""
        short = split_name(name)[1].casefold()

        def is_it(raw: Mapping[str, Any]) -> bool:
            return str(raw.get("name")).casefold() == short

        return self._endpoint(name, self._ask("GET", name, usable=is_it))

    def list(self, namespace: str) -> tuple[Endpoint, ...]:
        """All endpoints of a user or organisation, from all pages of the answer."""
        return tuple(self._pages(namespace))

    def pause(self, name: str) -> Endpoint:
        """Request a pause. Returning means that the server accepted it, not that it is done."""
        return self._endpoint(name, self._ask("POST", name, "/pause"))

    def resume(self, name: str) -> Endpoint | None:
        """Request a resume; returns None if the endpoint was running already.

        The request is repeated only if the server certainly did not begin it, because a resume that
        takes effect late starts a bill. Otherwise see `ControlPlaneError.maybe_done`.
        """
        try:
            answer = self._ask("POST", name, "/resume", repeatable=False, usable=_is_any)
        except ControlPlaneError as error:
            # The documented answer for an endpoint that is up, and no other 400 has this text.
            if error.status == HTTPStatus.BAD_REQUEST and "already running" in str(error).lower():
                return None
            raise
        return self._endpoint(name, answer)

    def update(self, name: str, payload: Mapping[str, Any]) -> Endpoint:
        """Change what ``payload`` names (``EndpointUpdate``), leave the rest."""
        return self._endpoint(name, self._ask("PUT", name, payload=payload))

    def replicas(self, name: str) -> tuple[Mapping[str, Any], ...]:
        """The replicas that the server remembers, each with ``status.startedAt`` and so on."""
        return objects(self._ask("GET", name, "/replica", usable=_is_any).get("items"))

    def hardware(self) -> Mapping[str, Any]:
        """The public list of vendors, regions and instances with ``pricePerHour``."""
        what = "the list of hardware"
        return self._request("GET", "/provider", what=what, public=True, usable=_is_any)

    def healthy(self, endpoint: Endpoint) -> bool:
        """Whether the endpoint's health route answers 200; one try.

        Call this only for a running endpoint: any request wakes an endpoint that is scaled to zero,
        and starts its bill.

        Raises:
            ControlPlaneError: the token may not call the endpoint.
        """
        if not endpoint.url:
            return False
        url = endpoint.url.rstrip("/") + "/" + endpoint.health_route.lstrip("/")
        try:
            answer = self._transport.send("GET", url, self._headers(), None, self._retry.try_s)
        except NoAnswerError:
            return False
        if answer.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            raise ControlPlaneError(
                f"{endpoint.full_name} runs, but the token may not call it (HTTP {answer.status}); "
                'it needs the permission "Make calls to Inference Endpoints".',
                status=answer.status,
            )
        return answer.status in _OK

    def _pages(self, namespace: str) -> Iterator[Endpoint]:
        cursor, seen = "", set[str]()
        for _ in range(_MOST_PAGES):
            query = "?" + urlencode({"cursor": cursor}) if cursor else ""
            path = f"/endpoint/{quote(namespace, safe='')}{query}"
            what = f'the endpoints of "{namespace}"'
            page = self._request("GET", path, what=what, usable=_is_list)
            for raw in objects(page["items"]):
                yield Endpoint.parse(namespace, raw)
            following = page.get("nextCursor")
            cursor = following if isinstance(following, str) else ""
            if not cursor or cursor in seen:
                return
            seen.add(cursor)

    def _endpoint(self, name: str, raw: Mapping[str, Any]) -> Endpoint:
        namespace, short = split_name(name)
        return Endpoint.parse(namespace, {**raw, "name": short})

    def _ask(
        self,
        method: str,
        name: str,
        verb: str = "",
        *,
        payload: Mapping[str, Any] | None = None,
        repeatable: bool = True,
        usable: _Usable | None = None,
    ) -> Mapping[str, Any]:
        path = "/endpoint/" + "/".join(quote(half, safe="") for half in split_name(name)) + verb
        how: dict[str, Any] = {"payload": payload, "repeatable": repeatable, "usable": usable}
        return self._request(method, path, what=name, **how)

    def _request(
        self,
        method: str,
        path: str,
        *,
        what: str,
        payload: Mapping[str, Any] | None = None,
        repeatable: bool = True,
        public: bool = False,
        usable: _Usable | None = None,
    ) -> Mapping[str, Any]:
        """Send a request, with retries; returns the JSON object of the answer.

        Args:
            repeatable: whether a second request can do no harm.
            public: whether to leave the token out.
            usable: whether an answer has the expected form; None accepts any answer.
        """
        ends = self._clock.monotonic() + self._retry.total_s
        tries = 0
        while True:
            tries += 1
            try:
                return self._once(method, path, what, payload, public=public, usable=usable)
            except ControlPlaneError as error:
                again = error.status is None or error.status in _BUSY
                if not again or error.lasting or (error.maybe_done and not repeatable):
                    raise
                wait = self._retry.wait(tries, error.retry_after)
                if self._clock.monotonic() + wait >= ends:
                    raise
                self._clock.sleep(wait)

    def _once(
        self,
        method: str,
        path: str,
        what: str,
        payload: Mapping[str, Any] | None,
        *,
        public: bool,
        usable: _Usable | None,
    ) -> Mapping[str, Any]:
        url, headers = self.base_url + path, self._headers(public=public)
        body = None if payload is None else dumps(payload).encode()
        try:
            answer = self._transport.send(method, url, headers, body, self._retry.try_s)
        except NoAnswerError as error:
            raise ControlPlaneError(
                f"{what}: {public_url(self.base_url)} did not answer ({error}).",
                maybe_done=error.sent,
                lasting=error.lasting,
            ) from None
        if answer.status not in _OK:
            raise refusal(what, answer)
        content = json_object(answer.body) or {}
        if usable is not None and not usable(content):
            raise ControlPlaneError(
                f"{what}: {public_url(self.base_url)} answered something unreadable.",
                maybe_done=method != "GET",
            )
        return content

    def _headers(self, *, public: bool = False) -> dict[str, str]:
        headers = {
            "accept": "application/json",
            "content-type": "application/json",
            "user-agent": f"pytest-hfbudget/{__version__} ({self._agent})",
        }
        if self._token and not public:
            headers["authorization"] = f"Bearer {self._token}"
        return headers
