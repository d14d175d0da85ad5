"""A client for the emulator's own controls; standard library only, so any process can use it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping

# By name: where a conftest file is the first to import it, its package does not have it yet.
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlencode, urlsplit

_TIMEOUT = 30.0
_FIRST_ERROR = 400


class EmulatorClient:
    """Talks to the `/_emulator` controls of the emulator at `url`. Safe to share by threads."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    # -- what happened

    def log(self, *, after: int = 0, **fields: object) -> list[dict[str, Any]]:
        """Log entries with `seq` above `after` whose fields have these values."""
        return self._log(after, 0.0, fields)["entries"]  # type: ignore[no-any-return]

    def last(self) -> int:
        """The `seq` of the newest log entry, to be given as `after`."""
        return int(self._log(0, 0.0, {"kind": "none"})["last"])

    def wait_for(
        self, *, after: int = 0, timeout: float = 10.0, **fields: object
    ) -> dict[str, Any]:
        """The first entry after `after` with these fields, waiting for it if need be.

        `wait_for(op="pause")` is a pause that arrived; `phase="answered"` one that was answered;
        `kind="state", state="paused"` a transition. Raises TimeoutError telling what came instead.
        """
        if "op" in fields and not {"kind", "phase"} & set(fields):
            fields["phase"] = "arrived"
        found = self._log(after, timeout, fields)["entries"]
        if found:
            return found[0]  # type: ignore[no-any-return]
        came = "; ".join(map(_brief, self.log(after=after))) or "nothing"
        raise TimeoutError(f"no log entry with {fields} in {timeout:g} s; there came: {came}")

    def invoice(self) -> dict[str, Any]:
        """The bill up to now, in nano-USD."""
        return self.request("GET", "invoice")

    def state(self) -> dict[str, Any]:
        """Endpoints, models, switches and the clock, at a glance."""
        return self.request("GET", "state")

    # -- what shall happen

    def reset(self, **config: Any) -> None:
        """Begin anew: with what the emulator was started with, and then with `config`."""
        self.request("POST", "reset", config)

    def configure(self, **config: Any) -> None:
        """Turn switches, or give whole parts: models, prices, endpoints, faults."""
        self.request("POST", "config", config)

    def add_model(self, id: str, **form: Any) -> None:
        """Add a model with its `providers`; with `provider` and `price`, price one offer of it."""
        self.request("POST", "models", {"id": id, **form})

    def price_providers(self, **prices: Mapping[str, Any]) -> None:
        """Price all models of a provider, `_` standing for `-` in its name."""
        named = {name.replace("_", "-"): price for name, price in prices.items()}
        self.request("POST", "models", {"prices": named})

    def add_endpoint(self, full_name: str, **form: Any) -> dict[str, Any]:
        """Add the dedicated endpoint "namespace/name"; returns the API's object."""
        namespace, name = full_name.split("/")
        return self.request("POST", "endpoints", {"namespace": namespace, "name": name, **form})

    def change_endpoint(self, full_name: str, **form: Any) -> dict[str, Any]:
        """Set `replicas`, `state`, or how the endpoint behaves from now on."""
        return self.request("POST", f"endpoints/{full_name}", form)

    def add_fault(
        self,
        op: str | None = None,
        *,
        path: str | None = None,
        endpoint: str | None = None,
        times: int | None = 1,
        skip: int = 0,
        **action: Any,
    ) -> None:
        """Let the next `times` requests go wrong, for ever if None, after `skip` of them.

        `op`, `path` (a regular expression) and `endpoint` ("namespace/name") say which requests;
        the other arguments are the action, such as `status=503` or `reset="after"`.
        """
        match = {"op": op, "path": path, "endpoint": endpoint}
        match = {name: value for name, value in match.items() if value is not None}
        fault = {"match": match, "times": times, "skip": skip, "action": action}
        self.request("POST", "faults", {"faults": [fault]})

    def clear_faults(self) -> None:
        """Remove all faults."""
        self.request("DELETE", "faults")

    def advance(self, seconds: float) -> None:
        """Move the emulator's clock forward; timers that become due run at once."""
        self.request("POST", "clock", {"advance": seconds})

    def request(
        self, method: str, path: str, body: Any = None, *, timeout: float = _TIMEOUT
    ) -> dict[str, Any]:
        """One control request. Raises ValueError with the emulator's words when it refuses."""
        where = urlsplit(self.url)
        connection = HTTPConnection(where.hostname or "", where.port, timeout=timeout)
        try:
            content = None if body is None else json.dumps(body)
            connection.request(method, f"{where.path}/_emulator/{path}", content)
            response = connection.getresponse()
            answer = json.loads(response.read())
        finally:
            connection.close()
        if response.status >= _FIRST_ERROR:
            raise ValueError(f"the emulator refused {method} {path}: {answer.get('error', answer)}")
        return dict(answer)

    def _log(self, after: int, wait: float, fields: Mapping[str, object]) -> dict[str, Any]:
        query = urlencode({"after": after, "wait": wait, **fields})
        deadline = time.monotonic() + wait + _TIMEOUT
        return self.request("GET", f"log?{query}", timeout=deadline - time.monotonic())


def _brief(entry: Mapping[str, Any]) -> str:
    """One entry in a few words."""
    names = ("kind", "phase", "op", "endpoint", "state", "status")
    return " ".join(str(entry[name]) for name in names if entry.get(name) is not None)
