"""One emulator for the tests that call; nothing of the machine's own configuration reaches them."""

from __future__ import annotations

import gc
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import pytest
from forked_python import ForkServer

pytest_plugins = ["pytester"]

OURS = ("HFBUDGET_", "HUGGINGFACE_", "HF_", "PYTEST_ADDOPTS", "GITHUB_")
CI = ("CI", "BUILD_NUMBER")  # what makes pytest print its summary uncut


LEFT_OUT = "left out for want of time"


class TimeLimit:
    """Starts no test after a number of seconds, and says how many it has left out.

    The gate has thirty minutes, on a busy machine too.
    """

    def __init__(self, seconds: float) -> None:
        self.ends = time.monotonic() + seconds

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self) -> None:
        if time.monotonic() > self.ends:
            pytest.skip(LEFT_OUT)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        skipped = terminalreporter.getreports("skipped")
        left_out = sum(LEFT_OUT in str(report.longrepr) for report in skipped)
        if left_out:
            terminalreporter.write_line(f"LEFT OUT: {left_out} tests, for want of time")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also the tests that CI alone runs")
    parser.addoption("--start-within", type=float, help="seconds after which no test starts")


def pytest_configure(config: pytest.Config) -> None:
    """Before 1.0 huggingface_hub has a requests session for each thread, and closes none of them.

    Whichever test the collector runs in would be blamed for such a socket.
    """
    if int(version("huggingface_hub").partition(".")[0]) < 1:
        for left_open in (
            "ignore:unclosed.*socket:ResourceWarning",
            "ignore:Exception ignored in.*socket:pytest.PytestUnraisableExceptionWarning",
        ):
            config.addinivalue_line("filterwarnings", left_open)
    seconds = config.getoption("--start-within")
    if seconds is not None:
        config.pluginmanager.register(TimeLimit(seconds))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--slow") or "slow" in config.getoption("-m"):
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    if slow:
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if not item.get_closest_marker("slow")]


def pytest_collection_finish() -> None:
    """Many tests collect garbage. What stays until the end need not be looked through each time."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Hypothesis looks through all of it once, should it be imported only now."""
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith(OURS) or name in CI:
            monkeypatch.delenv(name)
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_tests")
    # GNU readline, which pytest imports, tells child processes of a terminal of 80 columns.
    monkeypatch.setenv("COLUMNS", "")
    # Runs of their own are slow enough without compiling everything anew.
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    monkeypatch.setenv("HFBUDGET_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("HFBUDGET_CACHE_DIR", str(tmp_path / "cache"))
    # Each reaper would stay for two minutes; the tests of its later looks have times of their own.
    monkeypatch.setenv("HFBUDGET_ENDPOINT_LOOKS", "0")


@pytest.fixture(autouse=True, scope="session")
def _shared_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A home of the run's own, so that no token or cache of the user's is found."""
    patch = pytest.MonkeyPatch()
    home = tmp_path_factory.mktemp("home")
    patch.setenv("HOME", str(home))
    with suppress(ImportError):
        from certifi import contents

        # Each HTTP client reads all certificates that are trusted, which takes longest of a call.
        trusted = home / "trusted.pem"
        trusted.write_text("".join(contents().partition("-----END CERTIFICATE-----")[:2]))
        patch.setenv("SSL_CERT_FILE", str(trusted))
    yield
    patch.undo()


@pytest.fixture(scope="session")
def fork_server() -> Iterator[ForkServer]:
    """Where runs of pytest and commands start."""
    server = ForkServer()
    yield server
    server.close()


@pytest.fixture(autouse=True, scope="session")
def _signals_are_heard() -> Iterator[None]:
    """What nohup and a shell's ``&`` ignore is ignored in every process below, also where meant."""
    before = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGQUIT)}
    for number in before:
        signal.signal(number, signal.SIG_DFL)
    before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def free_port() -> int:
    """A port on which no server listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
