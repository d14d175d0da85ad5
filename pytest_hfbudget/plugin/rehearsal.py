"""`--hf-emulator`: the whole run against the local emulator, at $0."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TYPE_CHECKING

from pytest_hfbudget.errors import ConfigError, EndpointError
from pytest_hfbudget.files import cache_file
from pytest_hfbudget.settings import Settings
from pytest_hfbudget.text import public_url

if TYPE_CHECKING:
    from pytest_hfbudget.emulator import EmulatorClient

# The emulator accepts any token. The real one is not sent to it.
TOKEN = "hf_emulator"  # noqa: S105
START_S = 30.0
# Each rehearsal uses this port if it is free, for two reasons. A cassette that a rehearsal records
# has the port in its URLs. A reaper that outlived its rehearsal finds the leases of the next one.
PORT = 47_743


class Rehearsal:
    """An emulator in a process of its own, so that tests can't break it."""

    def __init__(self, url: str, process: subprocess.Popen[bytes] | None = None) -> None:
        self.url = url
        self._process = process
        self._token = os.environ.get("HF_TOKEN")
        os.environ["HF_TOKEN"] = TOKEN

    @classmethod
    def start(cls, where: str) -> Rehearsal:
        """Start an emulator, or use the one at a URL.

        Raises:
            ConfigError: it can't be started, or does not answer.
        """
        if where.startswith(("http://", "https://")):
            _check(where)
            return cls(where.rstrip("/"))
        if where not in ("start", "1", "true", "yes"):
            raise ConfigError(f"--hf-emulator={where}: write the URL of an emulator, or nothing")
        if find_spec("starlette") is None or find_spec("uvicorn") is None:
            raise ConfigError('--hf-emulator needs: pip install "pytest-hfbudget[emulator]"')
        return cls._spawn()

    @classmethod
    def _spawn(cls) -> Rehearsal:
        with tempfile.TemporaryDirectory(prefix="hfbudget-") as directory, _stderr_file() as errors:
            ready = Path(directory) / "ready"
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "pytest_hfbudget.emulator"),
                    *("--port", str(PORT), "--or-any-port"),
                    *("--ready-file", str(ready), "--exit-with", str(os.getpid())),
                ],
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,
            )
            return cls(_wait_ready(ready, process, errors), process)

    def settings(self, settings: Settings) -> Settings:
        """The settings, with the emulator's addresses."""
        return settings_for_emulator(self.url, settings)

    def provide(self, names: tuple[str, ...]) -> None:
        """Have the emulator play endpoints that it does not know yet.

        Raises:
            EndpointError: a name is invalid.
        """
        client = self._client()
        known = {endpoint["name"] for endpoint in client.state()["endpoints"]}
        for name in names:
            if name not in known:
                try:
                    client.add_endpoint(name)
                except ValueError as error:
                    raise EndpointError(f"endpoint {name!r}: {error}") from None

    def stop(self) -> None:
        """End the emulator, if this run has started it."""
        if self._token is None:
            os.environ.pop("HF_TOKEN", None)
        else:
            os.environ["HF_TOKEN"] = self._token
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            kept = (("catalogue", f"{self.url}/router"), ("hardware", f"{self.url}/v2"))
            for kind, origin in kept:
                with suppress(OSError):
                    cache_file(kind, origin).unlink()

    def _client(self) -> EmulatorClient:
        from pytest_hfbudget.emulator import EmulatorClient

        return EmulatorClient(self.url)


def settings_for_emulator(url: str, settings: Settings) -> Settings:
    """The settings, with the addresses of the emulator at a URL."""
    return settings.replaced(
        emulator=url,
        router=f"{url}/router",
        endpoints_api=f"{url}/v2",
        hub=f"{url}/hub",
    )


def _check(url: str) -> None:
    """Check that an emulator answers, before anything is collected.

    Raises:
        ConfigError: none does.
    """
    from pytest_hfbudget.emulator import EmulatorClient

    try:
        EmulatorClient(url).state()
    except (OSError, ValueError, RuntimeError, HTTPException) as error:
        raise ConfigError(
            f"HFBUDGET_EMULATOR={public_url(url)}: no emulator answers there ({error}). Start one "
            "with `python -m pytest_hfbudget.emulator`, or unset the variable and write "
            "--hf-emulator."
        ) from None


def _stderr_file() -> IO[bytes]:
    """A file for the emulator's standard error. A pipe would fill up, since nothing reads it."""
    return tempfile.TemporaryFile()


def _wait_ready(ready: Path, process: subprocess.Popen[bytes], errors: IO[bytes]) -> str:
    """The emulator's URL, once it has written its ready file.

    Raises:
        ConfigError: the emulator has ended, or was not ready within `START_S`.
    """
    waited = 0.0
    while not ready.exists():
        try:
            process.wait(0.02)
        except subprocess.TimeoutExpired:
            waited += 0.02
            if waited < START_S:
                continue
            process.kill()
        process.wait()
        errors.seek(0)
        lines = errors.read().decode(errors="replace").strip().splitlines()
        raise ConfigError(f"the emulator did not start: {lines[-1] if lines else 'no word'}")
    return str(json.loads(ready.read_text())["url"])
