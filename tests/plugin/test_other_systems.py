"""Windows: caps hold in one process and under xdist, and endpoints are refused.

Elsewhere that is simulated, by a plugin that takes away what Windows has not.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from plugin_suite import Suite

SIMULATED = () if sys.platform == "win32" else ("-p", "without_posix")

# A call costs $0.0000015, and may cost more: not all of twenty calls fit.
CAP = "--hf-session-budget=0.000025"
TWENTY_CALLS = """
    @pytest.mark.parametrize("number", range(20))
    def test_it(number):
        call()
"""


@pytest.fixture
def windows(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> Suite:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    return suite


def test_a_call_is_charged(windows: Suite) -> None:
    windows.test_file("def test_it(): call()")
    windows.run(*SIMULATED, "--hf-session-budget=1", "--hf-report=report.json")
    assert float(windows.report()["session"]["spent_usd"]) * 1e9 == windows.billed > 0


@pytest.mark.parametrize(
    "workers",
    [
        pytest.param((), id="one process"),
        pytest.param(("-n2",), id="two workers", marks=pytest.mark.slow),
    ],
)
def test_a_cap_holds(windows: Suite, workers: tuple[str, ...]) -> None:
    windows.test_file(TWENTY_CALLS)
    windows.run(*SIMULATED, CAP, *workers, "--hf-report=report.json")
    report = windows.report()
    assert 0 < windows.sent < 20
    assert round(float(report["session"]["spent_usd"]) * 1e9) == windows.billed <= 25_000
    assert report["session"]["refused"] == 20 - windows.sent


def test_an_endpoint_is_refused_with_one_line(windows: Suite) -> None:
    windows.test_file(
        """
        @pytest.mark.hf_endpoint("acme/llm")
        def test_it(hf_endpoint):
            pass
    """
    )
    result = windows.run(*SIMULATED)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    (line,) = [each for each in result.errlines if each.startswith("ERROR")]
    assert line.startswith("ERROR: Inference Endpoints need Linux or macOS.")


def test_a_stranger_without_the_password_reaches_no_ledger(windows: Suite) -> None:
    windows.test_file(
        """
        import socket

        def test_it(request):
            call()
            port, _, password = os.environ["HFBUDGET_LEDGER"].partition("/")
            for greeting in (b"", b"wrong\\n", password[:-1].encode() + b"\\n"):
                with socket.create_connection(("127.0.0.1", int(port)), timeout=5) as stranger:
                    stranger.sendall(greeting + b'["total", "session"]\\n')
                    assert stranger.recv(100) == b""
    """
    )
    windows.run(*SIMULATED, "--hf-session-budget=1").assert_outcomes(passed=1)
