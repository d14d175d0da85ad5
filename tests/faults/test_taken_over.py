"""Runs that are killed after the tested code has started an endpoint by requests of its own."""

from __future__ import annotations

import signal

import pytest
from fault_box import NAME, Box

STARTS = """
    import httpx
    from huggingface_hub import constants

    API = constants.INFERENCE_ENDPOINTS_ENDPOINT + "/endpoint/acme"
    HEADERS = {"authorization": "Bearer " + os.environ["HF_TOKEN"]}
    FORM = {
        "name": "new", "type": "protected", "provider": {"vendor": "aws", "region": "us-east-1"},
        "compute": {
            "accelerator": "cpu", "instanceType": "intel-icl", "instanceSize": "x1",
            "scaling": {"minReplica": 0, "maxReplica": 1, "scaleToZeroTimeout": 15},
        },
        "model": {"repository": "acme/model", "task": "text-generation", "framework": "pytorch",
                  "image": {"huggingface": {}}},
    }

    def resume():
        httpx.post(API + "/llm/resume", headers=HEADERS, timeout=60).raise_for_status()

    def test_it():
        {start}
        stay("test")
"""
RESUMES = STARTS.replace("{start}", "resume()")
CREATES = STARTS.replace(
    "{start}", "httpx.post(API, headers=HEADERS, json=FORM).raise_for_status()"
)


CAP = ("--hf-session-budget=1",)


@pytest.mark.parametrize(
    ("how", "cap"),
    [
        pytest.param("SIGKILL", (), marks=pytest.mark.quick),
        ("SIGKILL", CAP),
        ("SIGINT", ()),
        ("SIGTERM", CAP),
        ("tree", ()),
    ],
)
def test_what_the_tested_code_has_resumed_is_paused(
    box: Box, how: str, cap: tuple[str, ...]
) -> None:
    """Row 52."""
    box.suite(RESUMES)
    run = box.start(*cap)
    run.reached()
    end = run.kill_tree() if how == "tree" else run.send(signal.Signals[how])
    run.wait()
    box.judge(end)


def test_what_the_tested_code_has_created_is_paused(box: Box) -> None:
    """Row 52."""
    box.suite(CREATES)
    run = box.start()
    run.reached()
    end = run.send(signal.SIGKILL)
    run.wait()
    box.judge(end, resumes=0, name="acme/new")


def test_a_resume_of_the_tested_code_that_takes_effect_after_its_run_has_died(box: Box) -> None:
    """Rows 5, 52: the lease was in the journal before the request was sent."""
    box.hurry(late_resume_s=4)
    box.hub.add_fault("resume", hang=2)
    box.suite(RESUMES)
    run = box.start()
    run.sees(op="resume")
    end = run.send(signal.SIGKILL)
    run.wait()
    box.judge(end, within=3)
    assert box.hub.log(kind="state", endpoint=NAME, state="running")


@pytest.mark.parametrize("how", ["SIGKILL", "tree"])
def test_what_a_worker_has_resumed_is_paused(box: Box, how: str) -> None:
    """Rows 26, 52."""
    pytest.importorskip("xdist")
    box.suite(RESUMES)
    run = box.start("-n1")
    run.reached()
    end = run.kill_tree() if how == "tree" else run.send(signal.SIGKILL)
    run.wait()
    box.judge(end)


@pytest.mark.quick
def test_what_another_run_has_up_is_used_until_the_tested_code_ends_too(box: Box) -> None:
    """Rows 38, 52: its resume is refused as "already running", which the client puts up with."""
    box.suite(
        """
        @pytest.mark.hf_endpoint("acme/llm")
        def test_it():
            stay("marked")
        """,
        "test_marked.py",
    )
    box.suite(STARTS.replace(".raise_for_status()", "").replace("{start}", "resume()"))
    marked = box.start("test_marked.py")
    marked.reached("marked")
    starts = box.start("test_suite.py")
    starts.reached()
    box.open_gate("marked")
    assert marked.wait() == 0
    assert box.state_of() == "running"
    assert box.requests("pause") == []
    box.open_gate("test")
    assert starts.wait() == 0
    box.judge(None, resumes=2)
