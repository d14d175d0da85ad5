"""A rehearsal: whatever the suite does against Hugging Face, it does against the emulator."""

from __future__ import annotations

import os
import socket
import threading
import time
from pathlib import Path

import pytest
from plugin_suite import Suite

from pytest_hfbudget.plugin.rehearsal import PORT

EVERY_TASK = """
    ASKED = {
        "automatic_speech_recognition": (b"sound",),
        "fill_mask": ("the <mask>",),
        "image_classification": (b"picture",),
        "sentence_similarity": ("one", ["two"]),
        "summarization": ("a long story",),
        "text_classification": ("fine",),
        "text_generation": ("once",),
        "token_classification": ("Anna went",),
        "translation": ("hello",),
    }

    def ask(client, method):
        return getattr(client, method)(*ASKED[method])
"""


def test_a_named_endpoint_plays_the_task_that_is_asked_of_it(suite: Suite) -> None:
    suite.test_file(
        EVERY_TASK
        + """
    @pytest.mark.hf_endpoint("acme/llm")
    @pytest.mark.parametrize("method", ASKED)
    def test_it(hf_endpoint, method):
        assert ask(hf_endpoint.client, method)
        assert asyncio.run(ask(hf_endpoint.async_client, method))
        assert hf_endpoint.client.chat_completion(SAY, max_tokens=5).choices
    """
    )
    suite.run().assert_outcomes(passed=9)
    asked = [row["task"] for row in suite.emulator.invoice()["calls"]]
    assert len(set(asked) - {"conversational"}) == 9


def test_a_conftest_may_be_the_first_to_import_an_http_library(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rehearsal begins inside that import, when ``http.client`` is not yet in its package."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    suite.lean = False
    (suite.path / "conftest.py").write_text(
        "import sys\nassert 'http.client' not in sys.modules\nimport urllib.request\n"
    )
    suite.test_file("def test_it(): call()")
    suite.run("-p", "pytest_hfbudget.plugin").assert_outcomes(passed=1)
    assert suite.sent == 1


def test_an_endpoint_plays_the_task_of_a_child_process_too(suite: Suite) -> None:
    suite.test_file(
        EVERY_TASK
        + """
    import multiprocessing

    def in_child(url):
        import pytest_hfbudget.join
        assert ask(InferenceClient(url), "fill_mask")[0].token_str == "sea"

    @pytest.mark.budget(max_usd=1)
    @pytest.mark.hf_endpoint("acme/llm")
    def test_it(hf_endpoint):
        spawn = multiprocessing.get_context("spawn")
        child = spawn.Process(target=in_child, args=(hf_endpoint.url,))
        child.start()
        child.join()
        assert child.exitcode == 0
    """
    )
    suite.run().assert_outcomes(passed=1)


def test_a_client_without_a_provider_is_served_each_task(suite: Suite) -> None:
    suite.test_file(
        EVERY_TASK
        + """
    @pytest.mark.parametrize("method", ASKED)
    def test_it(method):
        model = f"emulator/{method.replace('_', '-')}"
        assert ask(InferenceClient(model=model), method)
        assert ask(InferenceClient(), method)
    """
    )
    suite.run().assert_outcomes(passed=9)


@pytest.fixture
def own(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> Suite:
    """A suite whose rehearsals start an emulator of their own, on the usual port."""
    monkeypatch.delenv("HFBUDGET_EMULATOR")
    return suite


def _wait_for_port() -> None:
    ends = time.monotonic() + 30
    while not _is_free(PORT) and time.monotonic() < ends:
        threading.Event().wait(0.05)


def _is_free(port: int) -> bool:
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def test_a_rehearsal_leaves_nothing_in_the_cache(own: Suite) -> None:
    own.test_file("""
        @pytest.mark.hf_endpoint("acme/llm")
        def test_it(hf_endpoint): call()
    """)
    own.run("--hf-emulator", "--hf-session-budget=1").assert_outcomes(passed=1)
    cache = Path(os.environ["HFBUDGET_CACHE_DIR"])
    assert not list(cache.rglob("*.json"))


def _on_the_usual_port(own: Suite, recorded: str) -> pytest.RunResult:
    """A rehearsal on the port that it prefers, which those of other tests may take in between."""
    for _ in range(10):
        _wait_for_port()
        (own.path / recorded).unlink(missing_ok=True)
        result = own.run("--hf-emulator", "--hf-session-budget=1")
        if any(line.endswith(f":{PORT}") for line in result.outlines[:5]):
            break
    return result


def test_a_cassette_of_a_rehearsal_is_played_back_in_the_next_one(
    own: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("vcr")
    own.test_file("""
        import vcr

        def test_it():
            with vcr.use_cassette("it.yaml", record_mode=os.environ["MODE"]):
                call()
    """)
    said = []
    for mode in ("once", "none"):
        monkeypatch.setenv("MODE", mode)
        result = _on_the_usual_port(own, recorded="it.yaml" if mode == "once" else "nothing")
        result.assert_outcomes(passed=1)
        said += [line for line in result.outlines if line.startswith("spent")]
    assert "1 replayed" not in said[0]
    assert "1 replayed" in said[1]
