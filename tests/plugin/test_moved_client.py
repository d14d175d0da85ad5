"""A huggingface_hub that has moved its client: under a cap no call leaves that is not seen."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import huggingface_hub
import pytest
from plugin_suite import Suite

pytestmark = pytest.mark.slow

USAGE_ERROR = 4
RELEASE = "9.9.9"


def moved(folder: Path, *, leave_the_old_one: bool) -> Path:
    """A copy of the installed huggingface_hub whose client is in ``inference/client.py``."""
    package = folder / "huggingface_hub"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(huggingface_hub.__file__).parent, package, ignore=ignored)
    old, new = package / "inference" / "_client.py", package / "inference" / "client.py"
    code = old.read_text()
    for file in package.rglob("*.py"):
        text = file.read_text()
        for before, after in (
            ("inference._client", "inference.client"),
            ("inference/_client", "inference/client"),
            (f'"{huggingface_hub.__version__}"', f'"{RELEASE}"'),
        ):
            text = text.replace(before, after)
        file.write_text(text)
    old.rename(new)
    if leave_the_old_one:
        old.write_text(code)
    return folder


@pytest.fixture(scope="session")
def hubs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    make = tmp_path_factory.mktemp
    return {
        "moved": moved(make("moved"), leave_the_old_one=False),
        "copied": moved(make("copied"), leave_the_old_one=True),
    }


@pytest.fixture(params=["moved", "copied"])
def hub(
    request: pytest.FixtureRequest,
    hubs: dict[str, Path],
    real: Suite,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    folder = hubs[request.param]
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return folder


CALL = """
    import huggingface_hub
    url = __import__("os").environ["HFBUDGET_ROUTER"] + "/v1"
    client = huggingface_hub.InferenceClient(base_url=url, api_key="hf_x")
    say = [{"role": "user", "content": "Hi."}]
    client.chat_completion(say, model="emulator/chat", max_tokens=5)
"""


def script(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=dict(os.environ),
    )


def in_a_function(name: str) -> str:
    return f"def {name}():\n" + textwrap.indent(textwrap.dedent(CALL), "    ")


def test_the_client_sends_where_there_is_no_cap(hub: Path, real: Suite) -> None:
    """Or the other tests would prove nothing."""
    done = script(CALL)
    assert done.returncode == 0, done.stderr
    assert real.sent == 1


@pytest.mark.parametrize("imported", ["before the block", "inside of it"])
def test_a_block_with_a_cap_refuses_the_release(hub: Path, real: Suite, imported: str) -> None:
    before = "import huggingface_hub" if imported == "before the block" else ""
    call = textwrap.indent(textwrap.dedent(CALL), "    ")
    done = script(f"{before}\nfrom pytest_hfbudget import budget\nwith budget(max_usd=0):\n{call}")
    assert done.returncode == 1
    assert f"huggingface_hub {RELEASE} sends its calls in a way that" in done.stderr
    assert real.sent == 0


@pytest.mark.parametrize("where", ["conftest.py", "test_suite.py", "a test"])
def test_a_session_budget_is_a_usage_error_or_a_refusal(hub: Path, real: Suite, where: str) -> None:
    if where == "conftest.py":
        (real.path / "conftest.py").write_text("import huggingface_hub\n")
    top = "import huggingface_hub\n" if where == "test_suite.py" else ""
    (real.path / "test_suite.py").write_text(top + in_a_function("test_it"))
    result = real.run("--hf-session-budget=1")
    assert result.ret == (1 if where == "a test" else USAGE_ERROR)
    said = result.stdout.str() + result.stderr.str()
    assert f"huggingface_hub {RELEASE} sends its calls in a way that" in said
    assert real.sent == 0


def test_workers_say_it_too(hub: Path, real: Suite) -> None:
    pytest.importorskip("xdist")
    (real.path / "test_suite.py").write_text("import huggingface_hub\n" + in_a_function("test_it"))
    result = real.run("--hf-session-budget=1", "-n2")
    assert result.ret == USAGE_ERROR
    assert f"huggingface_hub {RELEASE}" in result.stderr.str()
    assert real.sent == 0


@pytest.mark.parametrize("top", ["import huggingface_hub", "import pytest_hfbudget"])
def test_a_test_with_a_cap_fails(hub: Path, real: Suite, top: str) -> None:
    marker = "import pytest\n@pytest.mark.budget(max_usd=0)\n"
    (real.path / "test_suite.py").write_text(f"{top}\n{marker}{in_a_function('test_it')}")
    result = real.run()
    assert result.ret == 1
    assert f"huggingface_hub {RELEASE} sends its calls in a way that" in result.stdout.str()
    assert real.sent == 0


def test_a_run_without_a_cap_goes_on(hub: Path, real: Suite) -> None:
    (real.path / "test_suite.py").write_text("import huggingface_hub\n" + in_a_function("test_it"))
    result = real.run()
    result.assert_outcomes(passed=1)
    assert real.sent == 1


def test_a_hub_that_a_test_has_made_up_is_no_unknown_release(suite: Suite) -> None:
    suite.test_file("""
        import sys, types
        from unittest.mock import MagicMock

        @pytest.mark.parametrize("fake", [types.ModuleType("huggingface_hub"), MagicMock()])
        def test_it(monkeypatch, fake):
            monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
            with budget(max_usd=1):
                import huggingface_hub
                assert huggingface_hub is fake
    """)
    suite.run("--hf-session-budget=1").assert_outcomes(passed=2)


def test_a_client_that_a_test_has_made_up_is_no_unknown_release(suite: Suite) -> None:
    suite.test_file("""
        from unittest.mock import MagicMock
        import huggingface_hub

        class Client: ...

        @pytest.mark.parametrize("fake", [Client, MagicMock(), MagicMock(spec=Client)])
        def test_it(monkeypatch, fake):
            monkeypatch.setattr(huggingface_hub, "InferenceClient", fake)
            with budget(max_usd=1):
                pass
    """)
    suite.run().assert_outcomes(passed=3)
