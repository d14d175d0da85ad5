"""One emulator for all these tests, reset before each, and huggingface_hub pointed at it."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from huggingface_hub import constants
from huggingface_hub.inference import _providers
from huggingface_hub.inference._providers import _common, hf_inference

from pytest_hfbudget.emulator import Emulator, EmulatorClient
from pytest_hfbudget.emulator.clock import Clock
from pytest_hfbudget.emulator.world import World

TOKEN = "hf_tester"


class Answer(NamedTuple):
    """A plain HTTP answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@pytest.fixture
def world() -> World:
    """A world without a server, in which time passes only by `clock.advance`."""
    return World(clock=Clock(lambda: 0))


@pytest.fixture(scope="session")
def running_emulator() -> Iterator[Emulator]:
    with Emulator() as emulator:
        yield emulator


@pytest.fixture
def emulator(running_emulator: Emulator) -> Emulator:
    running_emulator.client.reset()
    return running_emulator


@pytest.fixture
def control(emulator: Emulator) -> EmulatorClient:
    return emulator.client


@pytest.fixture
def hub(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> Emulator:
    """The emulator, with huggingface_hub of this process pointed at it."""
    monkeypatch.setattr(constants, "INFERENCE_ENDPOINTS_ENDPOINT", emulator.endpoints_api)
    monkeypatch.setattr(constants, "ENDPOINT", emulator.hub)
    template = f"{emulator.router}/{{provider}}"
    monkeypatch.setattr(constants, "INFERENCE_PROXY_TEMPLATE", template)
    for helper in _providers.PROVIDERS["hf-inference"].values():
        monkeypatch.setattr(helper, "base_url", f"{emulator.router}/hf-inference")
    auto = getattr(_providers, "CONVERSATIONAL_AUTO_ROUTER", None)
    if auto is not None:  # Before 1.0 the client chose the provider itself.
        monkeypatch.setattr(auto, "base_url", emulator.router)
    monkeypatch.setenv("HF_TOKEN", TOKEN)  # the client does not pass its token on everywhere
    _common._fetch_inference_provider_mapping.cache_clear()
    hf_inference._check_supported_task.cache_clear()
    hf_inference._fetch_recommended_models.cache_clear()
    return emulator


@pytest.fixture
def call(emulator: Emulator) -> Callable[..., Answer]:
    """One plain HTTP request: call(method, path, body=None, token=TOKEN, **headers)."""

    def request(
        method: str,
        path: str,
        body: Any = None,
        token: str | None = TOKEN,
        timeout: float = 10,
        **headers: str,
    ) -> Answer:
        where = urlsplit(emulator.url)
        connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=timeout)
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if token is not None:
            sent["Authorization"] = f"Bearer {token}"
        try:
            connection.request(method, path, None if body is None else json.dumps(body), sent)
            response = connection.getresponse()
            return Answer(response.status, dict(response.headers.items()), response.read())
        finally:
            connection.close()

    return request
