"""A real redis-server of one test, which can be killed, stopped, restarted and flushed."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

READY_TRIES = 400
NEEDED = "redis-server is not installed: apt-get install redis-server"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class RedisServer:
    """One server, on a port of its own that stays the same when it is restarted."""

    folder: Path
    options: tuple[str, ...] = ()
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @staticmethod
    def needed() -> None:
        """Skip the test where there is no such program; in CI it has to be there."""
        if not (shutil.which("redis-server") or shutil.which("valkey-server")):
            (pytest.fail if os.environ.get("CI") else pytest.skip)(NEEDED)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def client(self, **more: Any) -> Any:
        """A connection of the test's own, which waits as long as it takes."""
        from redis import Redis

        return Redis(port=self.port, decode_responses=True, **more)

    def start(self) -> None:
        """Start it, and wait until it answers."""
        program = shutil.which("redis-server") or shutil.which("valkey-server")
        assert program, NEEDED
        fixed = f"--port {self.port} --bind 127.0.0.1 --loglevel warning --dir {self.folder} --save"
        self.process = subprocess.Popen(
            [program, *fixed.split(), "", *self.options], stdout=subprocess.DEVNULL
        )
        self.wait()

    def wait(self) -> None:
        from redis.backoff import ConstantBackoff
        from redis.exceptions import ConnectionError as NotYet
        from redis.retry import Retry

        patient = Retry(ConstantBackoff(0.025), READY_TRIES, supported_errors=(NotYet,))
        with self.client(retry=patient) as client:
            client.ping()

    def pass_seconds(self, seconds: int, meanwhile: Callable[[], object]) -> None:
        """Do something again and again until so many seconds are over by the server's clock."""
        with self.client() as client:
            end = client.time()[0] + seconds
            while client.time()[0] < end:
                meanwhile()

    def kill(self) -> None:
        """End it as a power cut does."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def restart(self) -> None:
        self.kill()
        self.start()

    def stop(self) -> None:
        """Have it answer nothing, and keep its connections."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A server without persistence."""
    RedisServer.needed()
    (tmp_path / "redis").mkdir()
    server = RedisServer(tmp_path / "redis")
    server.start()
    yield server
    server.close()
