"""What a run learns of its prompts is known to the next one, and to all its processes."""

from __future__ import annotations

import json
import os
import sqlite3
import textwrap
from pathlib import Path

import pytest
from plugin_suite import Suite

pytestmark = pytest.mark.slow

CALLS = """
    def test_calls():
        call()
"""
# Room for the prompt as it was counted, and not for its bytes.
TIGHT = "--hf-session-budget=0.000004"
AMPLE = "--hf-session-budget=1"
FAIL = "--hf-on-exhausted=fail"


def log() -> Path:
    return Path(os.environ["HFBUDGET_STATE_DIR"]) / "log.sqlite3"


def passes(suite: Suite, *options: str) -> bool:
    """Whether the call is sent where only its own cost has room."""
    before = suite.sent
    suite.run(TIGHT, FAIL, *options)
    return suite.sent > before


def test_the_second_run_knows_from_its_first_call(real: Suite) -> None:
    real.test_file(CALLS)
    assert not passes(real)
    real.run(AMPLE).assert_outcomes(passed=1)
    assert passes(real)


def test_a_log_that_is_not_kept_knows_nothing(real: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HFBUDGET_LOG_DAYS", "0")
    real.test_file(CALLS)
    real.run(AMPLE).assert_outcomes(passed=1)
    assert not passes(real)


def test_workers_leave_what_they_learn_and_are_told_what_is_known(real: Suite) -> None:
    pytest.importorskip("xdist")
    real.test_file(CALLS)
    real.run(AMPLE, "-n1").assert_outcomes(passed=1)
    assert passes(real, "-n1")


def test_a_process_that_a_test_starts_leaves_what_it_learns(real: Suite) -> None:
    (real.path / "app.py").write_text(
        "import pytest_hfbudget.join\n"
        "from huggingface_hub import InferenceClient\n"
        'say = [{"role": "user", "content": "Say something. [[tokens=10]]"}]\n'
        'client = InferenceClient(model="emulator/chat", provider="groq")\n'
        "client.chat_completion(say, max_tokens=20)\n"
    )
    real.test_file("""
        import subprocess, sys

        @pytest.mark.budget(max_usd=1)
        def test_starts_another():
            subprocess.run([sys.executable, "app.py"], check=True)
    """)
    real.run().assert_outcomes(passed=1)
    real.test_file(CALLS)
    assert passes(real)


def test_the_costs_file_tells_another_machine(real: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    real.test_file(CALLS)
    real.run(AMPLE, "--hf-store-costs").assert_outcomes(passed=1)
    monkeypatch.setenv("HFBUDGET_STATE_DIR", str(real.path / "of another machine"))
    assert passes(real)


def test_counts_by_another_rule_are_not_believed(
    real: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    real.test_file(CALLS)
    real.run(AMPLE, "--hf-store-costs").assert_outcomes(passed=1)
    with sqlite3.connect(log()) as connection:
        connection.execute("UPDATE prompt_tokens SET rule = 0, tokens = 1")
    costs = real.path / "hf-costs.json"
    costs.write_text(costs.read_text().replace("prompt_tokens_1", "prompt_tokens_0"))
    assert not passes(real)


def test_a_log_that_cant_be_read_knows_nothing_and_says_so(real: Suite) -> None:
    real.test_file(CALLS)
    real.run(AMPLE).assert_outcomes(passed=1)
    log().write_bytes(b"not a log " * 100)
    result = real.run(TIGHT, FAIL)
    assert real.sent == 1
    result.stdout.fnmatch_lines(["*token counts of earlier runs can't be read*log.sqlite3*"])


def test_what_is_kept_is_a_hash_and_never_a_text(real: Suite) -> None:
    real.test_file(CALLS)
    real.run(AMPLE, "--hf-store-costs").assert_outcomes(passed=1)
    kept = json.loads((real.path / "hf-costs.json").read_text())["prompt_tokens_1"]
    assert len(kept) == 2
    assert all(name.startswith("emulator/chat:groq ") for name in kept)
    for path in (log(), real.path / "hf-costs.json"):
        assert b"Say something" not in path.read_bytes()


def test_a_rehearsal_leaves_nothing_and_knows_nothing(suite: Suite) -> None:
    suite.test_file(CALLS)
    suite.run(AMPLE, "--hf-store-costs").assert_outcomes(passed=1)
    assert "prompt_tokens" not in (suite.path / "hf-costs.json").read_text()
    assert not passes(suite)


# Two calls, each of which shows an image of a size of its own, one of them in another process.
IMAGES = """
    import pytest_hfbudget.join
    from huggingface_hub import InferenceClient

    def look(image):
        shown = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + image}}
        asked = [{"role": "user", "content": [shown, {"type": "text", "text": "What is this?"}]}]
        client = InferenceClient(model="emulator/chat", provider="groq")
        client.chat_completion(asked, max_tokens=20)

    if __name__ == "__main__":
        look("AAAA")
"""
LOOKS = """
    import subprocess, sys
    from app import look

    @pytest.mark.budget(max_usd=0.0003)
    def test_looks():
        look("BBBB")
        subprocess.run([sys.executable, "app.py"], check=True)
"""


@pytest.mark.parametrize("workers", [(), ("-n1",)])
def test_a_first_image_holds_what_the_settings_state_in_every_process(
    suite: Suite, workers: tuple[str, ...]
) -> None:
    if workers:
        pytest.importorskip("xdist")
    (suite.path / "app.py").write_text(textwrap.dedent(IMAGES))
    suite.test_file(LOOKS)
    result = suite.run("-rN", *workers)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["*if your images make fewer tokens, set hf_image_tokens to the most that one makes*"]
    )
    assert suite.sent == 0
    suite.run("-o", "hf_image_tokens=100", *workers).assert_outcomes(passed=1)
    assert suite.sent == 2


def test_a_number_that_was_stated_too_low_is_named_in_the_summary(suite: Suite) -> None:
    (suite.path / "app.py").write_text(textwrap.dedent(IMAGES))
    suite.test_file(LOOKS)
    suite.emulator.configure(template_tokens=["groq=400"])
    result = suite.run("-o", "hf_image_tokens=1")
    result.stdout.fnmatch_lines(
        ["*emulator/chat made more tokens of an image than hf_image_tokens states: raise that*"]
    )


def test_an_image_that_makes_more_than_its_size_should_is_named_in_the_summary(
    suite: Suite,
) -> None:
    model = "Qwen/Qwen3-VL-8B-Instruct"
    prices = suite.path / "prices.toml"
    prices.write_text(f'["{model}"]\ninput = 0.1\noutput = 0.1\n')
    suite.emulator.configure(image_tokens="by_tiles")
    small = "iVBORw0KGgoAAAANSUhEUgAAAEAAAABACAAAAACPAi4C"
    app = textwrap.dedent(IMAGES).replace("emulator/chat", model).replace("AAAA", small)
    (suite.path / "app.py").write_text(app)
    suite.test_file(LOOKS.replace("BBBB", small))
    result = suite.run(f"--hf-prices={prices}")
    result.stdout.fnmatch_lines([f"*{model} made more tokens of an image than its size allows*"])
