"""pytest-xdist: one cap, one resume, one report for all workers."""

from __future__ import annotations

import pytest
from plugin_suite import Suite

pytest.importorskip("xdist")


def test_four_workers_together_stay_below_the_cap(suite: Suite) -> None:
    suite.test_file("""
        @pytest.mark.parametrize("n", range(60))
        def test_it(n):
            call()
    """)
    options = ("--hf-session-budget=0.00006", "--hf-on-exhausted=fail", "--hf-report=report.json")
    result = suite.run("-n4", *options)
    outcomes = result.parseoutcomes()
    assert suite.sent == outcomes["passed"] < 60
    assert 0 < suite.billed <= 60_000
    report = suite.report()
    assert round(float(report["session"]["spent_usd"]) * 10**9) == suite.billed
    assert report["session"]["refused"] == outcomes["failed"]
    assert len(report["calls"]) == suite.sent


# A call may cost 20 tokens of $2 per 1M, and costs one.
ONE_AT_A_TIME = """
[pytest]
hf_session_budget = 0.00006
hf_prices = prices.toml
"""
PRICES = """
["emulator/chat"]
input = 0
output = 2
"""
MEETING = """
    import pathlib, time

    SAY = [{"role": "user", "content": "Say something. [[tokens=1]]"}]
    HERE = pathlib.Path(__file__).parent

    def until(name):
        while not (HERE / name).exists():
            time.sleep(0.01)

    @pytest.mark.parametrize("n", range(2))
    def test_it(n):
        client = InferenceClient(model="emulator/chat")
        if n:
            until("opened")
            (HERE / "asking").touch()
            try:
                client.chat_completion(SAY, max_tokens=20)
            finally:
                (HERE / "answered").touch()
        else:
            stream = client.chat_completion(SAY, max_tokens=20, stream=True)
            (HERE / "opened").touch()
            until("{}")
            assert list(stream)
"""


@pytest.mark.slow
def test_a_worker_waits_for_what_another_worker_holds(suite: Suite) -> None:
    (suite.path / "pytest.ini").write_text(ONE_AT_A_TIME)
    (suite.path / "prices.toml").write_text(PRICES)
    suite.test_file(MEETING.replace("{}", "asking"))
    suite.run("-n2", "--hf-report=report.json").assert_outcomes(passed=2)
    assert suite.sent == 2
    assert float(suite.report()["session"]["spent_usd"]) == 0.000004


@pytest.mark.slow
def test_a_worker_does_not_wait_longer_than_it_may(suite: Suite) -> None:
    (suite.path / "pytest.ini").write_text(f"{ONE_AT_A_TIME}hf_hold_wait = 0.1\n")
    (suite.path / "prices.toml").write_text(PRICES)
    suite.test_file(MEETING.replace("{}", "answered"))
    result = suite.run("-n2", "--hf-on-exhausted=fail")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*within 0.1 s (hf_hold_wait)*"])
    assert suite.sent == 1


@pytest.mark.slow
def test_a_block_in_a_worker_has_a_cap_of_its_own(suite: Suite) -> None:
    suite.test_file("""
        @pytest.mark.parametrize("n", range(4))
        def test_it(n):
            with budget(max_usd=1) as block:
                call()
            assert block.calls_used == len(block.calls) == 1
            with pytest.raises(BudgetExceededError), budget(max_usd=0):
                call()
    """)
    suite.run("-n2").assert_outcomes(passed=4)
    assert suite.sent == 4


def test_all_workers_share_one_resume_and_the_last_one_out_pauses(suite: Suite) -> None:
    suite.test_file("""
        @pytest.mark.parametrize("n", range(8))
        @pytest.mark.hf_endpoint("acme/llm")
        def test_it(hf_endpoint, n):
            assert hf_endpoint.client.chat_completion(SAY, max_tokens=5)
    """)
    result = suite.run("-n4", "--hf-session-budget=1")
    result.assert_outcomes(passed=8)
    result.stdout.fnmatch_lines(["*acme/llm: paused, verified; *"])
    assert len(suite.requests("resume")) == 1
    log = suite.emulator.log(kind="request", phase="arrived")
    first_pause = min(entry["seq"] for entry in log if entry["op"] == "pause")
    last_call = max(entry["seq"] for entry in log if entry["op"] == "chat")
    assert last_call < first_pause


def test_a_worker_that_dies_is_charged_what_it_held(suite: Suite) -> None:
    suite.test_file("""
        import signal

        def test_it():
            stream = InferenceClient(model="emulator/chat")
            chunks = stream.chat_completion(SAY, max_tokens=20, stream=True)
            next(iter(chunks))
            os.kill(os.getpid(), signal.SIGKILL)
    """)
    suite.run("-n1", "--max-worker-restart=0", "--hf-session-budget=1", "--hf-report=report.json")
    (lost,) = suite.report()["calls"]
    assert (lost["status"], lost["estimated"]) == ("lost", True)
    assert round(float(lost["usd"]) * 10**9) >= suite.billed > 0


def test_the_report_waits_for_what_a_dead_worker_held(suite: Suite) -> None:
    suite.pytester.makeconftest("""
        import threading

        def slow(frame, event, argument):
            if frame.f_code.co_name == "gone":
                threading.Event().wait(0.3)

        threading.settrace(slow)
    """)
    suite.test_file("""
        import signal

        def test_it():
            stream = InferenceClient(model="emulator/chat")
            next(iter(stream.chat_completion(SAY, max_tokens=20, stream=True)))
            os.kill(os.getpid(), signal.SIGKILL)
    """)
    suite.run("-n1", "--max-worker-restart=0", "--hf-session-budget=1", "--hf-report=report.json")
    assert [call["status"] for call in suite.report()["calls"]] == ["lost"]


@pytest.mark.slow
def test_a_worker_that_dies_leaves_the_endpoint_to_the_others(suite: Suite) -> None:
    suite.test_file("""
        @pytest.mark.hf_endpoint("acme/llm")
        def test_dies(hf_endpoint):
            os._exit(3)

        @pytest.mark.parametrize("n", range(4))
        @pytest.mark.hf_endpoint("acme/llm")
        def test_lives(hf_endpoint, n):
            assert hf_endpoint.client.chat_completion(SAY, max_tokens=5)
    """)
    suite.run("-n2").assert_outcomes(passed=4, failed=1)
    assert len(suite.requests("resume")) == 1
    assert suite.requests("pause")


@pytest.mark.slow
@pytest.mark.parametrize("dist", ["load", "loadscope", "loadfile", "loadgroup", "worksteal"])
def test_every_way_to_distribute_tests_has_one_cap(suite: Suite, dist: str) -> None:
    suite.test_file("""
        @pytest.mark.parametrize("n", range(6))
        def test_it(n):
            call()
    """)
    options = ("--hf-session-budget=0", "--hf-on-exhausted=fail", "--hf-report=report.json")
    result = suite.run("-n2", f"--dist={dist}", *options)
    result.assert_outcomes(failed=6)
    assert suite.sent == 0
    assert suite.report()["session"]["refused"] == 6


DEATHS = [
    "os._exit(3)",
    pytest.param("ctypes.string_at(0)", marks=pytest.mark.slow),
    pytest.param("os.kill(os.getpid(), 9)", marks=pytest.mark.slow),
]


@pytest.mark.slow
@pytest.mark.parametrize("death", DEATHS)
def test_workers_that_replace_crashed_ones_spend_from_the_same_cap(
    suite: Suite, death: str
) -> None:
    suite.test_file(f"""
        import ctypes

        @pytest.mark.parametrize("n", range(12))
        def test_it(n):
            try:
                call()
            finally:
                if n % 4 == 1:
                    client = InferenceClient(model="emulator/chat", provider="groq")
                    next(iter(client.chat_completion(SAY, max_tokens=20, stream=True)))
                    {death}
    """)
    cap = ("-n2", "-p", "no:faulthandler", "--hf-session-budget=0.00003")
    suite.run(*cap, "--hf-report=report.json")
    report = suite.report()
    spent = round(float(report["session"]["spent_usd"]) * 10**9)
    # What a dead worker held is charged in full, which is more than its streams were billed.
    assert 0 < suite.billed <= spent <= 30_000
    assert suite.sent == len(report["calls"])


def test_one_test_that_runs_in_each_worker_has_one_budget(suite: Suite) -> None:
    suite.test_file("""
        @pytest.mark.budget(max_usd=1, max_calls=1)
        def test_it():
            call()
    """)
    result = suite.run("--tx=2*popen", "--dist=each")
    result.assert_outcomes(passed=1, failed=1)
    assert suite.sent == 1


@pytest.mark.parametrize("stop", ["-x", pytest.param("--maxfail=2", marks=pytest.mark.slow)])
def test_a_run_that_stops_early_has_charged_what_was_sent(suite: Suite, stop: str) -> None:
    suite.test_file("""
        @pytest.mark.parametrize("n", range(20))
        def test_it(n):
            call()
            assert n % 5 != 1
    """)
    suite.run("-n2", stop, "--hf-session-budget=1", "--hf-report=report.json")
    report = suite.report()
    assert 0 < suite.sent == len(report["calls"]) < 20
    assert round(float(report["session"]["spent_usd"]) * 10**9) == suite.billed


@pytest.mark.slow
def test_all_attempts_of_a_test_share_its_budget_in_workers_too(suite: Suite) -> None:
    pytest.importorskip("pytest_rerunfailures")
    suite.test_file("""
        @pytest.mark.parametrize("n", range(2))
        @pytest.mark.budget(max_usd=1, max_calls=2)
        def test_it(n):
            call()
            assert 0
    """)
    suite.run("-n2", "--reruns=4").assert_outcomes(failed=2)
    assert suite.sent == 4


def test_without_xdist_nothing_is_missed(suite: Suite) -> None:
    suite.test_file("""
        def test_it():
            call()
    """)
    suite.run("-p", "no:xdist", "--hf-session-budget=1").assert_outcomes(passed=1)
