"""The tap: in place when huggingface_hub is there, gone without a trace when it is not wanted."""

from __future__ import annotations

import gc
import subprocess
import sys
import textwrap
from importlib import import_module
from pathlib import Path
from types import ModuleType

import huggingface_hub
import pytest
from huggingface_hub import AsyncInferenceClient, InferenceClient
from metering_bench import Bench, say

from pytest_hfbudget.metering.call import Call
from pytest_hfbudget.metering.instrumentation import PostImport
from pytest_hfbudget.metering.instrumentation.hub import bypassing
from pytest_hfbudget.metering.replay import SendWatch
from pytest_hfbudget.metering.request import OutgoingCall
from pytest_hfbudget.metering.transport_probe import ProbedRequest


def run(code: str, tmp_path: Path) -> str:
    """The output of a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_both_clients_are_instrumented_while_a_meter_watches(bench: Bench) -> None:
    assert hasattr(InferenceClient._inner_post, "__wrapped__")
    assert hasattr(AsyncInferenceClient._inner_post, "__wrapped__")


def test_the_innermost_run_is_charged(bench: Bench) -> None:
    bench.client().chat_completion(say(1), max_tokens=1)
    assert len(bench.ledger.charges()) == 1


def test_a_script_needs_no_pytest(tmp_path: Path) -> None:
    output = run(
        """
        import sys
        from pytest_hfbudget import budget
        with budget(max_usd=1) as block:
            pass
        print(block.spent, "pytest" in sys.modules, "huggingface_hub" in sys.modules)
        """,
        tmp_path,
    )
    assert output.split() == ["0", "False", "False"]


def test_a_script_says_in_its_environment_how_long_a_call_waits_for_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = """
        from pytest_hfbudget import ConfigError
        from pytest_hfbudget.metering.runtime import standalone
        try:
            print(standalone().meter.hold_wait)
        except ConfigError as error:
            print(error)
        """
    assert run(script, tmp_path).split() == ["60.0"]
    monkeypatch.setenv("HFBUDGET_HOLD_WAIT", "1.5")
    assert run(script, tmp_path).split() == ["1.5"]
    monkeypatch.setenv("HFBUDGET_HOLD_WAIT", "long")
    assert run(script, tmp_path).startswith("HFBUDGET_HOLD_WAIT=long: write a number of seconds")


def test_leaving_the_last_block_of_a_script_leaves_huggingface_hub_as_it_was(
    tmp_path: Path,
) -> None:
    output = run(
        """
        from huggingface_hub.inference._client import InferenceClient
        from pytest_hfbudget import budget
        before = InferenceClient._inner_post
        with budget(max_usd=1):
            inside = InferenceClient._inner_post
        print(inside is before, InferenceClient._inner_post is before)
        """,
        tmp_path,
    )
    assert output.split() == ["False", "True"]


def test_an_instrumented_method_that_was_wrapped_again_is_left_alone_with_a_warning(
    tmp_path: Path,
) -> None:
    output = run(
        """
        import functools, warnings
        from huggingface_hub.inference._client import InferenceClient
        from pytest_hfbudget import budget
        with warnings.catch_warnings(record=True) as caught, budget(max_usd=1):
            ours = InferenceClient._inner_post
            @functools.wraps(ours)
            def theirs(*args, **kwargs):
                return ours(*args, **kwargs)
            InferenceClient._inner_post = theirs
        print(InferenceClient._inner_post is theirs)
        """,
        tmp_path,
    )
    assert output.split() == ["True"]


CHANGED = """
    import huggingface_hub.inference._client as client
    def _inner_post(self, something_else): ...
    client.InferenceClient._inner_post = _inner_post
    from pytest_hfbudget import budget
"""


def test_an_unknown_huggingface_hub_is_refused_under_a_cap(tmp_path: Path) -> None:
    output = run(
        textwrap.dedent(CHANGED)
        + textwrap.dedent(
            """
            from pytest_hfbudget import BudgetExceededError
            from pytest_hfbudget.errors import ConfigError
            try:
                with budget(max_usd=1):
                    print("let through")
            except ConfigError as error:
                print(error)
            """
        ),
        tmp_path,
    )
    assert "let through" not in output
    assert "InferenceClient._inner_post" in output


@pytest.mark.parametrize("client", [InferenceClient, AsyncInferenceClient])
def test_every_task_of_the_installed_huggingface_hub_passes_through_the_tap(client: type) -> None:
    assert bypassing(client) == {}


@pytest.mark.skipif(
    not hasattr(InferenceClient, "get_model_status"), reason="this huggingface_hub has neither"
)
@pytest.mark.parametrize("question", ["get_model_status()", "list_deployed_models('sklearn')"])
def test_questions_about_models_are_free_and_pass_under_a_cap(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, question: str
) -> None:
    monkeypatch.setenv("HF_INFERENCE_ENDPOINT", f"{bench.emulator.url}/nowhere")
    output = run(
        f"""
        import warnings
        warnings.simplefilter("ignore")
        from huggingface_hub import InferenceClient
        from huggingface_hub.errors import HfHubHTTPError
        from pytest_hfbudget import budget
        with budget(max_usd=0) as block:
            try:
                InferenceClient("acme/model", provider="hf-inference", token="hf_any").{question}
            except HfHubHTTPError as error:
                print(error.response.status_code, block.spent, block.calls_used)
        """,
        tmp_path,
    )
    assert output.split() == ["404", "0", "0"]


BYPASS = """
    import logging
    from huggingface_hub import InferenceClient
    def dream(self, prompt):
        return "sent past the tap"
    dream.__module__ = InferenceClient.__module__
    InferenceClient.dream = dream
    from pytest_hfbudget import budget
    logging.basicConfig(format="%(message)s")
    client = InferenceClient("acme/model", token="hf_any")
"""


def test_a_task_that_bypasses_the_tap_is_refused_under_a_cap(tmp_path: Path) -> None:
    output = run(
        textwrap.dedent(BYPASS)
        + textwrap.dedent(
            """
            from pytest_hfbudget.errors import ConfigError
            with budget(max_usd=1):
                try:
                    print(client.dream("of electric sheep"))
                except ConfigError as error:
                    print(error)
            print(client.dream("of electric sheep"), InferenceClient.dream is dream)
            """
        ),
        tmp_path,
    )
    refusal, after = output.splitlines()
    release = huggingface_hub.__version__
    assert refusal == (
        f"pytest-hfbudget can't see what InferenceClient.dream of huggingface_hub {release} costs, "
        "because the method bypasses InferenceClient._inner_post. The method was not called. "
        "Use another method, or install a newer pytest-hfbudget."
    )  # that release is one that is recommended, so it names no other
    assert after == "sent past the tap True"


def test_a_task_that_bypasses_the_tap_is_warned_of_once_without_a_cap(tmp_path: Path) -> None:
    output = run(
        textwrap.dedent(BYPASS)
        + textwrap.dedent(
            """
            import io
            told = io.StringIO()
            logging.getLogger("pytest_hfbudget").addHandler(logging.StreamHandler(told))
            with budget():
                client.dream("of electric sheep")
                print(client.dream("of electric sheep"))
            print(told.getvalue().count("The call is not counted."))
            """
        ),
        tmp_path,
    )
    assert output.splitlines() == ["sent past the tap", "1"]


@pytest.mark.parametrize("cap", [None, 1])
def test_a_call_leaves_nothing_to_the_garbage_collector(bench: Bench, cap: int | None) -> None:
    bench.running(cap)
    client = bench.client()

    def call() -> None:
        client.chat_completion(say(1), max_tokens=5)
        bench.runtime.meter.drain()

    call()
    gc.collect()
    gc.disable()
    try:
        before = _ours()
        for _ in range(5):
            call()
        assert _ours() == before
    finally:
        gc.enable()


def _ours() -> int:
    return sum(
        type(each) in (Call, ProbedRequest, OutgoingCall, SendWatch) for each in gc.get_objects()
    )


def test_a_module_whose_import_is_under_way_is_wrapped_at_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library may import another one at which the plugin wakes up."""
    (tmp_path / "slow_library.py").write_text("import begins\nbegins.now()\nDONE = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    seen = []
    hook = PostImport({"slow_library": lambda module: seen.append(module.DONE)})
    begins = ModuleType("begins")
    begins.now = hook.install  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "begins", begins)
    try:
        import_module("slow_library")
        assert seen == [True]
    finally:
        hook.uninstall()
        sys.modules.pop("slow_library", None)
