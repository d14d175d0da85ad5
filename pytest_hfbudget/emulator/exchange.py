"""One request as the emulator handles it, and the routes."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from starlette.datastructures import Headers, QueryParams
from starlette.responses import Response
from starlette.routing import compile_path
from starlette.types import ASGIApp

from pytest_hfbudget.emulator.connection import Connection
from pytest_hfbudget.emulator.faults import Action
from pytest_hfbudget.emulator.invoice import Call
from pytest_hfbudget.emulator.refusal import refused
from pytest_hfbudget.emulator.world import World

# public: no token; user: a good token; manage: one that may manage endpoints; infer: one that may
# call endpoints, unless the endpoint is public; billing: one that may read the bill; backstage: the
# emulator's own controls.
Access = Literal["public", "user", "manage", "infer", "billing", "backstage"]


@dataclass
class Exchange:
    """A request with all that its handler needs. Its answer is what the handler returns."""

    world: World
    route: Route
    method: str
    path: str
    query: QueryParams
    headers: Headers
    params: dict[str, str]
    body: bytes
    connection: Connection
    token: str | None
    origin: str  # scheme://host:port
    action: Action = field(default_factory=Action)
    call: Call | None = None
    chunks: int = 0
    broken_off: bool = False

    @cached_property
    def form(self) -> dict[str, Any] | None:
        """The body as a JSON object; None when it is something else."""
        if not self.body.lstrip().startswith(b"{"):
            return None
        try:
            parsed: dict[str, Any] = json.loads(self.body)
        except ValueError:
            return None
        return parsed

    def json(self) -> dict[str, Any]:
        """The body as a JSON object; an empty body is an empty object. Raises Refusal (400)."""
        if not self.body:
            return {}
        if self.form is None:
            raise refused(400, "the body is not a JSON object")
        return self.form

    @property
    def endpoint(self) -> str | None:
        """namespace/name of the endpoint that the path names."""
        if "namespace" in self.params and "name" in self.params:
            return f"{self.params['namespace']}/{self.params['name']}"
        return None

    def endpoint_url(self, full_name: str) -> str:
        """Where a dedicated endpoint infers."""
        return f"{self.origin}/endpoint/{full_name}"

    @property
    def the_call(self) -> Call:
        """The invoice row of a metered request."""
        if self.call is None:
            raise RuntimeError(f"{self.route.op} is not metered")
        return self.call


Handler = Callable[[Exchange], Awaitable[Response | ASGIApp]]


@dataclass(frozen=True)
class Route:
    """A route: method and path, its name in faults and the log, and the permission it needs."""

    method: str
    path: str
    op: str
    handler: Handler
    access: Access = "user"
    task: str | None = None  # of a metered request

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return compile_path(self.path)[0]

    def match(self, path: str) -> dict[str, str] | None:
        """The path's parameters, or None when it leads elsewhere."""
        found = self._pattern.match(path)
        return found.groupdict() if found else None


def find_route(
    routes: Sequence[Route], method: str, path: str
) -> tuple[Route, dict[str, str]] | None:
    """The first route for this method and path. Raises Refusal (405) for another method only."""
    other_method = False
    for route in routes:
        params = route.match(path)
        if params is None:
            continue
        if route.method == method:
            return route, params
        other_method = True
    if other_method:
        raise refused(405, f"{method} is not allowed here")
    return None
