"""One run, killed at each of its steps in each of four ways.

No step is marked in the product's code. A run stands still at a step because the server does
not answer the request of that step, or because a hook of the suite's own conftest waits. The
emulator's log tells when it has come there, and only then it is killed.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from fault_box import NAME, REAPER, Box, Moment, Run, T, kill

# A request without an answer and without an effect.
NEVER: dict[str, Any] = {"hang": 60, "then": "close"}

SUITE = """
    from huggingface_hub import InferenceClient

    SAY = [{"role": "user", "content": "hello"}]

    @pytest.mark.hf_endpoint("acme/llm")
    def test_one(hf_endpoint):
        reached("one")
        hf_endpoint.client.chat_completion(SAY, max_tokens=5)

    @pytest.mark.hf_endpoint("acme/llm")
    def test_two():
        reached("two")
"""

HOOKS = """
    def pause_at(step):
        if os.environ.get("FAULTS_STEP") == step:
            stay(step)

    @pytest.hookimpl(trylast=True)
    def pytest_configure():
        pause_at("configure")

    def pytest_runtest_teardown(item):
        pause_at("teardown-" + item.name)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish():
        pause_at("sessionfinish")

    @pytest.hookimpl(tryfirst=True)
    def pytest_unconfigure():
        pause_at("unconfigure")
"""


@dataclass(frozen=True)
class Step:
    """Where a run is killed.

    Attributes:
        fault: what happens to the step's request; none if a hook waits.
        seen: fields of the log entry that says that the run has come there.
        resumes: how many there may be in the log in the end.
        late: seconds by which the step's own request may delay the pause.
    """

    name: str
    op: str = ""
    fault: dict[str, Any] = field(default_factory=dict)
    seen: dict[str, Any] = field(default_factory=dict)
    resumes: int = 1
    late: float = 0.0
    ready: Callable[[Box], object] | None = None


def _slow(box: Box) -> object:
    return box.hub.change_endpoint(NAME, initializing_s=60)


STEPS = (
    Step("configure", resumes=0),
    Step("check-the-endpoint", "get", NEVER, resumes=0),
    Step("look-before-the-lease", "get", {**NEVER, "skip": 1}, resumes=0),
    Step("arm-the-reaper", "get", {**NEVER, "skip": 2}, {"agent": REAPER}, resumes=0),
    Step("spread-the-net", "update", NEVER, resumes=0),
    Step("resume-never-arrives", "resume", NEVER),
    Step("resume-takes-effect-late", "resume", {"hang": 0.5}, late=1.5),
    Step("resume-is-not-answered", "resume", {"slow_body": 5.0}, {"kind": "state"}),
    Step("wait-for-it", seen={"kind": "state", "state": "initializing"}, ready=_slow),
    Step("look-at-its-health", "health", NEVER),
    Step("call-in-a-test", "chat", NEVER),
    Step("teardown-test_one"),
    Step("sessionfinish"),
    Step("ask-for-the-pause", "pause", {"hang": 0.5}, late=0.5),
    Step("verify-the-pause", "get", {"hang": 0.5}, {"agent": REAPER}),
    Step("unconfigure"),
)

KILLS: dict[str, Callable[[Run], Moment]] = {
    "INT": lambda run: run.send(signal.SIGINT),
    "TERM": lambda run: run.send(signal.SIGTERM),
    "KILL": lambda run: run.send(signal.SIGKILL),
    "TREE": lambda run: run.kill_tree(),
}
CODES = {"TERM": -signal.SIGTERM, "KILL": -signal.SIGKILL, "TREE": -signal.SIGKILL}


def _numbered(step: Step) -> str:
    return f"{STEPS.index(step) + 1:02}-{step.name}"


@pytest.mark.parametrize("kill", KILLS)
@pytest.mark.parametrize("step", STEPS, ids=_numbered)
def test_a_run_that_is_killed_at_a_step_leaves_nothing_running(
    box: Box, step: Step, kill: str
) -> None:
    box.hurry(late_resume_s=2, resend_s=0.3, verify_poll_s=0.1, poll_s=0.2)
    run = _begin(box, step)
    end = KILLS[kill](run)
    code = run.wait()
    box.judge(end, within=T + step.late, resumes=step.resumes)
    assert code == CODES[kill] if kill in CODES else code != 0


# Here the pause had been sent before the burst.
ASKED_BEFORE = ("sessionfinish", "verify-the-pause", "unconfigure")
AFTER_THE_RESUME = [step for step in STEPS if step.resumes]


@pytest.mark.parametrize("kill", ["TERM", "KILL"])
@pytest.mark.parametrize("step", AFTER_THE_RESUME, ids=_numbered)
def test_a_run_that_is_killed_at_a_step_on_a_full_disk_leaves_nothing_running(
    box: Box, step: Step, kill: str
) -> None:
    box.hurry(late_resume_s=2, resend_s=0.3, verify_poll_s=0.1, poll_s=0.2)
    run = _begin(box, step, command=box.on_a_disk_of_its_own())
    box.fill(run)
    end = KILLS[kill](run)
    assert run.wait() == CODES[kill]
    box.judge(end, within=T + step.late, resumes=step.resumes)


@pytest.mark.parametrize("status", [401, 403, 404])
@pytest.mark.parametrize("step", AFTER_THE_RESUME, ids=_numbered)
def test_a_run_that_is_killed_at_a_step_in_a_burst_leaves_nothing_running(
    box: Box, step: Step, status: int
) -> None:
    box.hurry(late_resume_s=2, resend_s=0.3, verify_poll_s=0.1, poll_s=0.2)
    run = _begin(box, step)
    box.hub.clear_faults()
    for op in ("pause", "get", "list"):
        box.hub.add_fault(op, times=None, status=status)
    seen = run.send(signal.SIGKILL).seq
    assert run.wait() == CODES["KILL"]
    if step.name not in ASKED_BEFORE:
        for _ in range(6):
            seen = run.sees(op="pause", after=seen, agent=REAPER).seq
    box.hub.clear_faults()
    box.judge(box.now(), within=T + step.late, resumes=step.resumes)


# How long a process may stay stopped that has to act.
STOPPED_S = 3.0
# At these the reaper is at its pause, or has done all that it had to do.
PAUSING = (*ASKED_BEFORE, "ask-for-the-pause")
WHILE_IT_WATCHES = [step for step in AFTER_THE_RESUME if step.name not in PAUSING]


@pytest.mark.parametrize("step", WHILE_IT_WATCHES, ids=_numbered)
def test_a_run_whose_reaper_is_stopped_at_a_step_leaves_nothing_running(
    box: Box, step: Step
) -> None:
    box.hurry(late_resume_s=2, resend_s=0.3, verify_poll_s=0.1, poll_s=0.2)
    run = _begin(box, step)
    for reaper in box.reapers():
        kill(reaper, signal.SIGSTOP)
    end = run.send(signal.SIGKILL)
    assert run.wait() == CODES["KILL"]
    box.judge(end, within=T + STOPPED_S + step.late, resumes=step.resumes)


IN_A_TEST = [step for step in STEPS if step.name in ("wait-for-it", "call-in-a-test")]


@pytest.mark.parametrize("step", IN_A_TEST, ids=_numbered)
def test_reapers_that_are_killed_under_workers_at_a_step_are_replaced(box: Box, step: Step) -> None:
    """All of them, in one instant; and then the controller."""
    box.hurry(late_resume_s=2, resend_s=0.3, verify_poll_s=0.1, poll_s=0.2)
    run = _begin(box, step, options=("-n2",))
    killed = box.now()
    box.kill_reapers()
    box.noticed(killed)
    end = run.send(signal.SIGKILL)
    assert run.wait() == CODES["KILL"]
    box.judge(end, within=T + step.late, resumes=step.resumes, linger=25)


def _begin(box: Box, step: Step, options: tuple[str, ...] = (), **how: Any) -> Run:
    """A run that stands still at a step."""
    box.conftest(HOOKS)
    box.suite(SUITE)
    if step.ready:
        step.ready(box)
    if step.fault and step.name != "verify-the-pause":
        box.hub.add_fault(step.op, **step.fault)
    run = box.start(*options, env={"FAULTS_STEP": step.name}, **how)
    _reach(box, run, step)
    return run


def _reach(box: Box, run: Run, step: Step) -> None:
    if step.name == "verify-the-pause":
        run.reached("two")
        # The reaper has looked at the endpoint once before, to prove that it can.
        box.hub.add_fault("get", **step.fault)
        paused = run.sees(op="pause")
        run.sees(op="get", after=paused.seq, **step.seen)
    elif "skip" in step.fault:
        seen = 0
        for number in range(int(step.fault["skip"]) + 1):
            wanted = step.seen if number == step.fault["skip"] else {}
            seen = run.sees(op="get", after=seen, **wanted).seq
        assert len(box.requests("get")) == step.fault["skip"] + 1
    elif step.seen:
        run.sees(**step.seen)
    elif step.op:
        run.sees(op=step.op)
    else:
        run.reached(step.name)
