"""Suites that forbid blocking calls in their event loop, or sockets: the plugin's own go on."""

from __future__ import annotations

import pytest
from plugin_suite import Suite

FORBIDDING = """
    from blockbuster import blockbuster_ctx

    @pytest.fixture(autouse=True)
    def no_blocking_calls():
        with blockbuster_ctx():
            yield
"""
AWAITED = (
    FORBIDDING
    + """
    async def ask(streamed=False):
        async with AsyncInferenceClient(model="emulator/chat", provider="groq") as client:
            answer = await client.chat_completion(
                SAY, max_tokens=20, stream=streamed,
                stream_options={"include_usage": True} if streamed else None,
            )
            return [chunk async for chunk in answer] if streamed else answer

    async def main(streamed):
        # huggingface_hub itself reads a file at its first call, and asks for the model.
        return await asyncio.gather(*(ask(streamed) for _ in range(3)))

    @pytest.fixture(scope="session", autouse=True)
    def known_model():
        asyncio.run(ask())

    @pytest.mark.parametrize("streamed", [False, True])
    def test_it(streamed):
        assert all(asyncio.run(main(streamed)))
"""
)


def assert_all_are_counted(suite: Suite, result: pytest.RunResult) -> None:
    result.assert_outcomes(passed=2)
    calls = suite.report()["calls"]
    assert len(calls) == suite.sent
    assert {call["output_tokens"] for call in calls} == {10}
    assert "could not be metered" not in result.stdout.str()


@pytest.mark.parametrize("cap", ["", "--hf-session-budget=1"])
@pytest.mark.parametrize("workers", [pytest.param("", marks=pytest.mark.slow), "-n2"])
def test_calls_are_counted_where_a_test_forbids_blocking_calls(
    suite: Suite, cap: str, workers: str
) -> None:
    pytest.importorskip("blockbuster")
    if workers:
        pytest.importorskip("xdist")
    suite.test_file(AWAITED)
    result = suite.run(*filter(None, (cap, workers)), "--hf-report=report.json")
    assert_all_are_counted(suite, result)


@pytest.mark.parametrize("workers", ["", pytest.param("-n2", marks=pytest.mark.slow)])
def test_a_budget_over_many_runs_holds_where_a_test_forbids_blocking_calls(
    real: Suite, workers: str
) -> None:
    pytest.importorskip("blockbuster")
    real.test_file(AWAITED)
    options = ("--hf-daily-budget=1", "--hf-report=report.json")
    result = real.run(*filter(None, (workers,)), *options)
    assert_all_are_counted(real, result)


def test_calls_wait_for_each_other_where_a_test_forbids_blocking_calls(suite: Suite) -> None:
    pytest.importorskip("blockbuster")
    (suite.path / "prices.toml").write_text('["emulator/chat"]\ninput = 0\noutput = 2\n')
    suite.test_file("""
        from blockbuster import BlockBuster

        async def ask():
            async with AsyncInferenceClient(model="emulator/chat", provider="groq") as client:
                return await client.chat_completion(SAY, max_tokens=20)

        async def main():
            return await asyncio.gather(*(ask() for _ in range(4)))

        def test_it():
            call()
            detector = BlockBuster()
            detector.activate()
            try:
                assert all(asyncio.run(main()))
            finally:
                detector.deactivate()
    """)
    result = suite.run("--hf-session-budget=0.0002", "--hf-prices=prices.toml", "-n1")
    result.assert_outcomes(passed=1)
    assert suite.sent == 5


# The tests find an open connection: what they call needs no socket of its own.
CONNECTED = """
    import pytest_socket

    @pytest.fixture(scope="session", autouse=True)
    def connected():
        pytest_socket.enable_socket()
        call()
        pytest_socket.disable_socket()

    @pytest.mark.parametrize("n", range(4))
    def test_it(n):
        call()
"""


@pytest.mark.parametrize("cap", ["", pytest.param("--hf-session-budget=1", marks=pytest.mark.slow)])
def test_workers_count_their_calls_where_sockets_are_disabled(suite: Suite, cap: str) -> None:
    pytest.importorskip("pytest_socket")
    pytest.importorskip("xdist")
    suite.test_file(CONNECTED)
    options = ("--disable-socket", "-n2", "--hf-report=report.json")
    result = suite.run(*filter(None, (cap,)), *options)
    result.assert_outcomes(passed=4)
    assert suite.report()["session"]["calls"] == suite.sent == 6


def test_a_forked_process_is_counted_where_sockets_are_disabled(suite: Suite) -> None:
    pytest.importorskip("pytest_socket")
    suite.test_file("""
        import multiprocessing

        def test_it():
            call_in_child()
            child = multiprocessing.get_context("fork").Process(target=call_in_child)
            child.start()
            child.join()
            assert child.exitcode == 0

        def call_in_child():
            import pytest_socket

            pytest_socket.enable_socket()  # for the call itself
            from huggingface_hub import InferenceClient

            client = InferenceClient(model="emulator/chat", provider="groq")
            client.chat_completion([{"role": "user", "content": "[[tokens=10]]"}], max_tokens=20)
            pytest_socket.disable_socket()
    """)
    options = ("--disable-socket", "--hf-session-budget=1", "--hf-report=report.json")
    suite.run(*options).assert_outcomes(passed=1)
    assert suite.report()["session"]["calls"] == suite.sent == 2
