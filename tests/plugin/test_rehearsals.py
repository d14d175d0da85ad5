"""A rehearsal: whatever the suite does against Hugging Face, it does against the emulator."""

from __future__ import annotations

from plugin_suite import Suite

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
