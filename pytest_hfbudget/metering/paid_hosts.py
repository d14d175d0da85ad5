"""Which requests may cost money: the hosts that bill, and the tasks behind their paths."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from pytest_hfbudget.settings import DEDICATED_HOST, ENDPOINTS_API, ROUTER, UNKNOWN_TASK
from pytest_hfbudget.text import printable

OLD_API = "https://api-inference.huggingface.co"
# The control plane is below the same domain. Its requests cost nothing by themselves.
CONTROL_PLANE = "api" + DEDICATED_HOST

HUB = "https://huggingface.co"
# What HfApi.create_inference_endpoint_from_catalog posts to (huggingface_hub 2.4).
CATALOG = "https://endpoints.huggingface.co/api/v1/catalog"
# Names of this machine: a server that is paid for by one of them is reached by the others, too.
THIS_MACHINE = ("localhost", "127.0.0.1", "::1", "0.0.0.0")  # noqa: S104 - nothing listens there

PORTS = {"https": 443, "http": 80}
FREE_HARDWARE = "cpu-basic"

# What a request does to an Inference Endpoint.
RESUMES, CREATES, DEPLOYS, STOPS = "resume", "create", "deploy", "pause"
# Stands for a request for a new repository, which is free unless its body asks for hardware.
NEW_REPOSITORY = "new repository"
# Requests that start something which costs money until it is stopped: the path, what is started,
# and one of the words above. A Sandbox is a Job. Patterns, here and below, are compiled when they
# are first needed: most runs of pytest import this and send nothing.
UPTIME_PATHS = (
    (r"/api/(?:scheduled-)?jobs/([^/]+)(?:/[^/]+/(?:duplicate|run))?", "a Job of {}", ""),
    (r"/api/spaces/([^/]+/[^/]+)/hardware", "hardware for the Space {}", ""),
    (r"/api/spaces/([^/]+/[^/]+)/restart", "the Space {}", ""),
    (r"/api/(repos/create|spaces/[^/]+/[^/]+/duplicate)", "", NEW_REPOSITORY),
    (r"/endpoint/([^/]+/[^/]+)/resume", "the Inference Endpoint {}", RESUMES),
    (r"/endpoint/([^/]+)", "a new Inference Endpoint of {}", CREATES),
    (r"/endpoint/([^/]+/[^/]+)/pause", "", STOPS),
    (r"/(?:model|recipe)/(.+)/deploy", "a new Inference Endpoint of {}", DEPLOYS),
)

# The ends of paths, with the task behind them. The first that fits counts.
SHAPES = (
    ("/chat/completions", "conversational"),
    ("/completions", "text-generation"),
    ("/responses", "conversational"),
    ("/embeddings", "feature-extraction"),
    ("/images/generations", "text-to-image"),
    ("/audio/speech", "text-to-speech"),
    ("/audio/transcriptions", "automatic-speech-recognition"),
    ("/generate", "text-generation"),  # text-generation-inference
    ("/generate_stream", "text-generation"),
    ("/embed", "feature-extraction"),  # text-embeddings-inference
)
# The paths of hf-inference and of the API before the router, which name the model.
MODEL_PATH = r"/models/([\w.-]+/[\w.-]+|[\w.-]+?)(?:/pipeline/([\w-]+))?(?:/v1/.*)?/?$"
PIPELINE_PATH = r"/pipeline/([\w-]+)/([\w.-]+/[\w.-]+)/?$"


class Shape(NamedTuple):
    """What a path asks for; ``model`` is empty if the body names it."""

    task: str
    model: str


def shape_of(url: str) -> Shape:
    """The task and the model in the path of a URL; a path that names neither is its own model."""
    path = urlsplit(url).path.rstrip("/")
    task = next((task for end, task in SHAPES if path.endswith(end)), UNKNOWN_TASK)
    if "/pipeline/" in path and (found := re.search(PIPELINE_PATH, path)):
        return Shape(found[1], found[2])
    if "/models/" in path and (found := re.search(MODEL_PATH, path)):
        return Shape(found[2] or task, found[1])
    return Shape(task, "" if task != UNKNOWN_TASK else url)


class UptimeRequest(NamedTuple):
    """A request that starts or pauses what is paid by the minute, or may start it.

    A request for a new repository may ask for paid hardware.

    Attributes:
        what: what is started, for messages.
        name: its name, or that of its owner.
        endpoint: what is done to an Inference Endpoint: `RESUMES`, `CREATES`, `DEPLOYS` (from the
            catalogue of models) or `STOPS`; `NEW_REPOSITORY` for a new repository; else empty.
        url: where the request goes, without user and query.
    """

    what: str
    name: str
    endpoint: str = ""
    url: str = ""

    @property
    def creates(self) -> bool:
        """Whether it makes a new endpoint, which the body of the request describes."""
        return self.endpoint in (CREATES, DEPLOYS)

    def hardware(self, form: Mapping[str, Any]) -> UptimeRequest | None:
        """The same for the paid hardware that a new repository asks for; None if it asks for none.

        Args:
            form: the body of the request, as huggingface_hub 2.4 posts it for ``create_repo`` and
                ``duplicate_repo``.
        """
        kind = form.get("hardware")
        if not isinstance(kind, str) or kind == FREE_HARDWARE:
            return None
        parts = form.get("organization"), form.get("name")
        name = form.get("repository") or "/".join(str(part) for part in parts if part)
        return self._replace(what=f"hardware for the Space {printable(str(name))}", endpoint="")

    def named(self, form: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
        """The full name of an endpoint, and the form of a new one as ``EndpointCreate`` has it.

        The name ends with a slash if the server is to choose one. An endpoint that is not new has
        an empty form.

        Args:
            form: the body of the request.
        """
        namespace = self.name
        if self.endpoint == DEPLOYS:
            config = form.get("config")
            namespace, form = form.get("namespace", ""), config if isinstance(config, dict) else {}
        return (f"{namespace}/{form.get('name', '')}", form) if self.creates else (self.name, {})


class PaidPrefix(NamedTuple):
    """A port of a host, and the beginning of the paths that are paid there.

    Attributes:
        port: None for any port.
        path: empty for any path.
    """

    port: int | None
    path: str

    def has(self, port: int | None, path: str) -> bool:
        """Whether a request to this port and path of the host is paid."""
        below = not self.path or path == self.path or path.startswith(self.path + "/")
        return below and self.port in (None, port)


class PaidHosts:
    """The router, the API before it, dedicated endpoints, and hosts that the user names.

    Args:
        more: what the user names: URLs, or hosts with or without a port.
        starting: base URLs, beside the public ones, of APIs that start what is paid by the minute.
    """

    def __init__(self, more: Iterable[str] = (), starting: Iterable[str] = ()) -> None:
        self._starting = [_address(each) for each in (HUB, ENDPOINTS_API, CATALOG, *starting)]
        self._start_hosts = {urlsplit(each).hostname for each in self._starting}
        self._prefixes: dict[str, list[PaidPrefix]] = {}
        self._known: dict[str, bool] = {}
        for each in (ROUTER, OLD_API, *more):
            parts = urlsplit(each if "://" in each else f"//{each}")
            prefix = PaidPrefix(parts.port, parts.path.rstrip("/"))
            self._prefixes.setdefault(_host(parts.hostname or ""), []).append(prefix)

    def may_bill(self, host: str) -> bool:
        """Whether some request to a host costs money: a quick check for every POST."""
        known = self._known.get(host)
        if known is None:
            name = _host(host)
            known = name in self._prefixes or name in self._start_hosts or _is_dedicated(name)
            if len(self._known) < MOST_KNOWN:
                self._known[host] = known
        return known

    def bills(self, url: str) -> bool:
        """Whether a POST to a URL may cost money."""
        try:
            parts = urlsplit(url)
            host, port = _host(parts.hostname or ""), parts.port
        except ValueError:
            return False  # no library sends to an address that can't be read
        if _is_dedicated(host):
            return True
        port = port or PORTS.get(parts.scheme)
        path = _path(parts.path)
        return any(prefix.has(port, path) for prefix in self._prefixes.get(host, ()))

    def uptime_request(self, url: str) -> UptimeRequest | None:
        """What a POST to a URL does to something that is paid by the minute; None if nothing."""
        try:
            address = _address(url)
        except ValueError:
            return None  # no library sends to an address that can't be read
        for base in self._starting:
            if address.startswith(f"{base}/"):
                path = address[len(base) :].rstrip("/")
                for pattern, what, endpoint in UPTIME_PATHS:
                    if (found := re.fullmatch(pattern, path)) is not None:
                        return UptimeRequest(
                            what.format(found[1]), unquote(found[1]), endpoint, address
                        )
        return None

    def bills_on(self, host: str, port: object) -> bool:
        """Whether a request by a connection to this host and port may cost money."""
        name = _host(host)
        prefixes = self._prefixes.get(name, ())
        return _is_dedicated(name) or any(prefix.port in (None, port) for prefix in prefixes)


# Hosts whose answer is kept: a crawler under test may meet any number of them.
MOST_KNOWN = 1024


def _host(name: str) -> str:
    """The name of a host in lower case; all names of this machine become one."""
    name = name.lower().rstrip(".")
    if "xn--" in name:
        name = ".".join(map(_label, name.split(".")))
    return THIS_MACHINE[0] if name in THIS_MACHINE else name


def _label(text: str) -> str:
    """A part of a host name in Unicode, also if an HTTP library has it in Punycode."""
    try:
        return text[4:].encode().decode("punycode") if text.startswith("xn--") else text
    except UnicodeError:
        return text


def _path(text: str) -> str:
    """A path as most servers read it: several slashes in a row count as one."""
    return re.sub("/{2,}", "/", text) if "//" in text else text


def _address(url: str) -> str:
    """A URL without user, query, and the default port of its scheme.

    Raises:
        ValueError: its port is not a number.
    """
    parts = urlsplit(url)
    plain = parts.port in (None, PORTS.get(parts.scheme))
    port = "" if plain else f":{parts.port}"
    return f"{parts.scheme}://{_host(parts.hostname or '')}{port}{_path(parts.path)}"


def _is_dedicated(host: str) -> bool:
    return host.endswith(DEDICATED_HOST) and host != CONTROL_PLANE
