"""The emulator as a running server: in a thread of this process, on a free port of loopback."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from pytest_hfbudget.emulator import billing, control, hub, inference, router, studio
from pytest_hfbudget.emulator.backstage import Backstage
from pytest_hfbudget.emulator.client import EmulatorClient
from pytest_hfbudget.emulator.clock import steady_seconds
from pytest_hfbudget.emulator.gateway import Gateway
from pytest_hfbudget.emulator.log import open_file
from pytest_hfbudget.emulator.world import World

_START_SECONDS = 10.0
# Pooled connections that a client keeps between tests must not die of old age.
_KEEP_ALIVE_SECONDS = 3600


def build_app(config: Mapping[str, Any] | None = None, log_file: IO[str] | None = None) -> Gateway:
    """The emulator as an ASGI application; every reset returns to `config`."""

    def new_world() -> World:
        world = World(log_file)
        world.configure(config or {})
        return world

    def reset() -> World:
        return gateway.reset()

    # Studios come first: their paths are special cases of the router's.
    rooms = [control, inference, billing, hub, studio, router]
    routes = [*Backstage(reset).routes(), *(route for room in rooms for route in room.ROUTES)]
    gateway = Gateway(routes, new_world)
    return gateway


class _Server(uvicorn.Server):
    """Says when it listens, and drops what still hangs when it stops."""

    def __init__(self, config: uvicorn.Config, gateway: Gateway) -> None:
        super().__init__(config)
        self.listening = threading.Event()
        self._gateway = gateway

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        # A timer that was set while a test had frozen time would be due hours later, or never.
        asyncio.get_running_loop().time = steady_seconds  # type: ignore[method-assign]
        self._gateway.open()
        await super().startup(sockets=sockets)
        self.listening.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._gateway.reset()
        await asyncio.sleep(0)
        await super().shutdown(sockets=sockets)


class Emulator:
    """A local stand-in for the Hugging Face services, over real HTTP.

        with Emulator() as emulator:
            InferenceClient(base_url=f"{emulator.router}/v1", api_key="hf_any")

    `config` has the parts of `POST /_emulator/config`; `log_file` gets the event log as JSON lines.
    `host` is the address on which it listens: whatever reaches that address may use its controls.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        config: Mapping[str, Any] | None = None,
        log_file: str | Path | None = None,
    ) -> None:
        self._host, self._port = host, port
        self._config = config
        self._log_path = Path(log_file) if log_file is not None else None
        self._log_file: IO[str] | None = None
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """The base of all addresses."""
        return f"http://{self._host}:{self._port}"

    @property
    def endpoints_api(self) -> str:
        """In place of https://api.endpoints.huggingface.cloud/v2."""
        return f"{self.url}/v2"

    @property
    def router(self) -> str:
        """In place of https://router.huggingface.co."""
        return f"{self.url}/router"

    @property
    def hub(self) -> str:
        """In place of https://huggingface.co."""
        return f"{self.url}/hub"

    @property
    def client(self) -> EmulatorClient:
        """A client for its own controls."""
        return EmulatorClient(self.url)

    def start(self) -> Emulator:
        """Listen. Raises RuntimeError when it runs already or does not come up."""
        if self._thread is not None:
            raise RuntimeError("this emulator runs already")
        self._log_file = open_file(self._log_path)
        gateway = build_app(self._config, self._log_file)
        listener = _listen(self._host, self._port)
        self._port = listener.getsockname()[1]
        self._server = server = _Server(_uvicorn_config(gateway), gateway)
        self._thread = threading.Thread(
            target=server.run, args=([listener],), name="hf-emulator", daemon=True
        )
        self._thread.start()
        if not server.listening.wait(_START_SECONDS):
            raise RuntimeError(f"the emulator did not come up in {_START_SECONDS:.0f} s")
        return self

    def stop(self) -> None:
        """Drop what still hangs and stop listening; harmless when it does not run."""
        if self._thread is None or self._server is None:
            return
        self._server.should_exit = True
        self._thread.join()
        self._thread = None
        if self._log_file is not None:
            self._log_file.close()

    def __enter__(self) -> Emulator:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def _listen(host: str, port: int) -> socket.socket:
    # The protocol is named because asyncio switches Nagle's algorithm off only where it is: else
    # every answer of two writes takes 40 ms.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    listener.listen(128)
    return listener


def _uvicorn_config(gateway: Gateway) -> uvicorn.Config:
    return uvicorn.Config(
        gateway,
        # h11 and asyncio whatever else is installed: the reset fault reaches into their transport.
        http=H11Protocol,
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="critical",
        access_log=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=1,
    )
