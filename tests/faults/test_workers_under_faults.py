"""xdist: workers that die, controllers that die, and every way to hand out tests."""

from __future__ import annotations

import signal

import pytest
from fault_box import HERE, NAME, ROOT, Box, T

pytest.importorskip("xdist")

DEATHS = {
    "_exit": "os._exit(3)",
    "segfault": "ctypes.string_at(0)",
    "SIGKILL": "os.kill(os.getpid(), signal.SIGKILL)",
    "SIGTERM": "os.kill(os.getpid(), signal.SIGTERM)",
}
SOME_DIE = """
    @pytest.mark.hf_endpoint("acme/llm")
    def test_dies():
        reached("death")
        {death}

    @pytest.mark.parametrize("n", range(6))
    @pytest.mark.hf_endpoint("acme/llm")
    def test_lives(n):
        reached(f"life-{{n}}")
"""


@pytest.mark.parametrize("restarts", [(), ("--max-worker-restart=0",)], ids=["replaced", "lost"])
@pytest.mark.parametrize("death", DEATHS)
def test_a_worker_that_dies_leaves_the_endpoint_to_the_others(
    box: Box, death: str, restarts: tuple[str, ...]
) -> None:
    """Row 24."""
    box.suite(SOME_DIE.format(death=DEATHS[death]))
    run = box.start("-n2", "-p", "no:faulthandler", *restarts)
    assert run.wait() in (1, 2)
    box.judge(None)
    lives = [entry for entry in box.requests("unknown") if "life" in entry["path"]]
    assert len(lives) == 6 or restarts  # without another worker xdist ends the run
    paused = box.requests("pause")[0]["seq"]
    assert [entry for entry in lives if entry["seq"] > paused] == []


def test_a_run_whose_workers_all_die_is_paused(box: Box) -> None:
    """Row 25."""
    box.suite("""
        @pytest.mark.parametrize("n", range(8))
        @pytest.mark.hf_endpoint("acme/llm")
        def test_dies(n):
            os._exit(3)
    """)
    run = box.start("-n2", "--max-worker-restart=2")
    assert run.wait() in (1, 2)
    box.judge(None)


CALLS = """
    from huggingface_hub import InferenceClient
    from pytest_hfbudget import BudgetExceededError

    SAY = [{"role": "user", "content": "Say something. [[tokens=10]]"}]

    @pytest.mark.parametrize("n", range(2))
    @pytest.mark.hf_endpoint("acme/llm")
    def test_calls(hf_endpoint, n):
        client = InferenceClient(model="emulator/chat", provider="groq")
        reached(f"worker-{n}")
        while True:
            try:
                hf_endpoint.client.chat_completion(SAY, max_tokens=10)
            except Exception:
                pass
            try:
                client.chat_completion(SAY, max_tokens=10)
            except Exception:
                pass
"""


@pytest.mark.parametrize("budget", [("--hf-session-budget=1",), ()], ids=["capped", "uncapped"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_orphaned_workers_make_no_more_paid_calls(
    box: Box, number: signal.Signals, budget: tuple[str, ...]
) -> None:
    """Row 26: they live on for seconds, and go on calling if they are let."""
    box.hub.configure(chunk_delay_s=0.0, answer_delay_s=0.02)
    box.suite(CALLS)
    run = box.start("-n2", *budget)
    for n in range(2):
        run.reached(f"worker-{n}")
    run.sees(op="chat", endpoint=NAME, phase="answered")
    run.sees(op="chat", endpoint=None, phase="answered")
    end = run.send(number)
    assert run.wait() == -number
    box.judge(end, linger=25)
    late = [one for one in box.requests("chat") if one["mono"] > end.mono + T]
    assert not late, f"{len(late)} calls, the last {late[-1]['mono'] - end.mono:.1f} s after"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_controller_that_is_killed_is_paused(box: Box, number: signal.Signals) -> None:
    """Row 26: its workers are in the middle of a test."""
    box.suite()
    run = box.start("-n2")
    run.reached()
    end = run.send(number)
    assert run.wait() == -number
    box.judge(end, linger=25)


SHORT = """
    @pytest.mark.parametrize("n", range(2000))
    @pytest.mark.hf_endpoint("acme/llm")
    def test_is_short(n):
        reached("short")
        threading.Event().wait(0.02)
"""
STAYS = """
    @pytest.mark.parametrize("n", range(2))
    @pytest.mark.hf_endpoint("acme/llm")
    def test_stays(n):
        reached("short")
        threading.Event().wait(60)
"""


@pytest.mark.parametrize(
    "suite",
    [
        pytest.param(SHORT, id="short-tests"),
        pytest.param(STAYS, id="long-tests"),
    ],
)
def test_reapers_that_are_killed_under_workers_are_replaced_before_the_controller_is(
    box: Box, suite: str
) -> None:
    """Rows 26, 29: with all their standbys, in one instant."""
    box.suite(suite)
    run = box.start("-n2")
    run.reached("short")
    killed = box.now()
    box.kill_reapers()
    box.noticed(killed)
    end = run.send(signal.SIGKILL)
    run.wait()
    box.judge(end, linger=25)


def test_a_controller_that_is_killed_with_its_group_is_paused(box: Box) -> None:
    """Rows 9, 26."""
    box.suite()
    run = box.start("-n2")
    run.reached()
    end = run.kill_group()
    run.wait()
    box.judge(end)


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_at_the_controller_pauses_at_once(box: Box, times: int) -> None:
    """Row 27: xdist itself takes seconds to end, and skips its session's finish at a second."""
    box.suite()
    run = box.start("-n2")
    run.reached()
    end = run.send(signal.SIGINT)
    if times == 2:
        run.sees(op="pause", after=end.seq)
        run.send(signal.SIGINT)
    assert run.wait() in (2, -signal.SIGINT)
    box.judge(end, linger=25)


SEVERAL = """
    @pytest.mark.parametrize("n", range(4))
    @pytest.mark.hf_endpoint("acme/llm")
    def test_it(n):
        reached(f"test-{n}")
"""


@pytest.mark.parametrize(
    "options",
    [
        *(("-n2", f"--dist={how}") for how in ("load", "each", "loadgroup", "loadfile")),
        ("-n2", "--dist=loadscope"),
        ("-n2", "--dist=worksteal"),
        ("-n0",),
        ("-n1", "-x"),
        ("-p", "no:xdist"),
    ],
    ids="_".join,
)
def test_every_way_to_hand_out_tests_resumes_once(box: Box, options: tuple[str, ...]) -> None:
    """Row 28."""
    box.suite(SEVERAL)
    assert box.start(*options, "--hf-endpoint=acme/llm").wait() == 0
    box.judge(None)


def test_without_xdist_installed_it_is_the_same(box: Box) -> None:
    """Row 28."""
    box.suite(SEVERAL)
    (box.path / "no_xdist.py").write_text("import sys\nsys.modules['xdist'] = None\n")
    run = box.start(
        *("-p", "no_xdist", "-p", "pytest_hfbudget.plugin"),
        env={"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": f"{box.path}:{HERE}:{ROOT}"},
    )
    assert run.wait() == 0
    box.judge(None)
