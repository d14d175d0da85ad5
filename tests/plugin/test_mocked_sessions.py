"""A suite of mocks: its tests, its report and its place in the usage log are as ever."""

from __future__ import annotations

import pytest
from plugin_suite import Suite

MOCKED = """
    import json
    from unittest.mock import MagicMock, patch

    BODY = json.dumps({
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "As mocked."}}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 10, "total_tokens": 19},
    }).encode()

    @pytest.mark.parametrize("n", range(2))
    def test_it(n):
        response = MagicMock(status_code=200, content=BODY)
        response.read.return_value = BODY
        session = MagicMock()
        session.post.return_value = response
        session.stream.return_value.__enter__.return_value = response
        call()
        with patch("huggingface_hub.inference._client.get_session", return_value=session):
            assert call().choices[0].message.content == "As mocked."
"""


@pytest.mark.parametrize(
    "options",
    [
        ("-n2",),
        pytest.param((), marks=pytest.mark.slow),
        pytest.param(("--hf-session-budget=1",), marks=pytest.mark.slow),
        pytest.param(("--hf-session-budget=1", "-n2"), marks=pytest.mark.slow),
    ],
    ids=" ".join,
)
def test_mocked_sessions_leave_tests_report_and_log_alone(
    real: Suite, options: tuple[str, ...]
) -> None:
    if "-n2" in options:
        pytest.importorskip("xdist")
    real.test_file(MOCKED)
    result = real.run(*options, "--hf-report=report.json")
    result.assert_outcomes(passed=2)
    result.stdout.no_fnmatch_line("*usage log*")
    calls = real.report()["calls"]
    assert sorted(call["replayed"] for call in calls) == [False, False, True, True]
    assert {call["provider"] for call in calls} == {"groq"}
