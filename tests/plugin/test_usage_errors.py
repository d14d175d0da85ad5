"""Bad input: one line that says what to do, pytest's exit code for it, and no traceback."""

from __future__ import annotations

import pytest
from plugin_suite import Suite

pytestmark = pytest.mark.slow

USAGE_ERROR = 4


def _one_line(result: pytest.RunResult, text: str) -> None:
    assert result.ret == USAGE_ERROR
    lines = [line for line in result.errlines if line.startswith("ERROR: ")]
    assert len(lines) == 1
    assert text in lines[0]
    assert "Traceback" not in result.stdout.str() + result.stderr.str()
    assert "INTERNALERROR" not in result.stdout.str()


@pytest.mark.parametrize("cap", ["nan", "-1", "abc"])
@pytest.mark.parametrize(
    "option", ["--hf-session-budget", pytest.param("--hf-test-budget", marks=pytest.mark.slow)]
)
def test_a_cap_that_is_none(suite: Suite, option: str, cap: str) -> None:
    suite.test_file("def test_it(): pass")
    _one_line(suite.run(f"{option}={cap}"), f"{option}={cap}: ")


def test_a_cap_that_is_none_in_the_environment(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite.test_file("def test_it(): pass")
    monkeypatch.setenv("HFBUDGET_SESSION", "five")
    _one_line(suite.run(), "HFBUDGET_SESSION=five: ")


@pytest.mark.parametrize("given", ["option", "variable", "ini"])
def test_a_cap_that_is_empty(suite: Suite, monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    suite.test_file("def test_it(): call()")
    options = []
    if given == "option":
        suite.pytester.makeini("[pytest]\nhf_session_budget = 0.01\n")
        options = ["--hf-session-budget="]
    elif given == "variable":
        monkeypatch.setenv("HFBUDGET_SESSION", "")
    else:
        suite.pytester.makeini("[pytest]\nhf_session_budget =\n")
    _one_line(
        suite.run(*options), " is empty. Without its value a run could spend more than you allow"
    )
    assert suite.sent == 0


def test_a_mistyped_variable(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    suite.test_file("def test_it(): call()")
    monkeypatch.setenv("HFBUDGET_SESION", "0")
    _one_line(
        suite.run(), "unknown environment variable HFBUDGET_SESION: did you mean HFBUDGET_SESSION?"
    )
    assert suite.sent == 0


@pytest.mark.parametrize("options", [(), ("-n2",)])
def test_a_mistyped_ini_key(suite: Suite, options: tuple[str, ...]) -> None:
    if options:
        pytest.importorskip("xdist")
    suite.test_file("def test_it(): call()")
    suite.pytester.makepyprojecttoml('[tool.pytest.ini_options]\nhf_sesion_budget = "0"\n')
    _one_line(
        suite.run(*options), "unknown ini setting hf_sesion_budget: did you mean hf_session_budget?"
    )
    assert suite.sent == 0


def test_a_mistyped_ini_key_on_the_command_line(suite: Suite) -> None:
    suite.test_file("def test_it(): call()")
    _one_line(suite.run("-o", "hf_sesion_budget=0"), "did you mean hf_session_budget?")


def test_an_ini_key_of_a_conftest_file_is_not_ours(suite: Suite) -> None:
    suite.pytester.makeconftest("def pytest_addoption(parser): parser.addini('hf_home', 'theirs')")
    suite.pytester.makeini("[pytest]\nhf_home = /tmp\n")
    suite.test_file("def test_it(): pass")
    assert suite.run().ret == 0


@pytest.mark.parametrize(
    "table", ["[tool.hfbudget]\nsession_budget = 1", '[tool.hfbudget.price."a/b"]\ninput = 1']
)
def test_a_mistyped_table_in_pyproject(suite: Suite, table: str) -> None:
    suite.pytester.makepyprojecttoml(table)
    suite.test_file("def test_it(): call()")
    _one_line(suite.run("--hf-session-budget=1"), "pyproject.toml: unknown key")


@pytest.mark.parametrize(
    "arguments", ["max_usd='abc'", "max_usd=-1", "max_dollars=1", "max_usd=1, scope='moon'"]
)
def test_a_bad_marker_argument(suite: Suite, arguments: str) -> None:
    suite.test_file(f"""
        @pytest.mark.budget({arguments})
        def test_it(): pass
    """)
    _one_line(suite.run(), "test_suite.py::test_it: @pytest.mark.budget(")


def test_a_bad_marker_argument_under_workers(suite: Suite) -> None:
    pytest.importorskip("xdist")
    suite.test_file("""
        @pytest.mark.budget(max_usd="abc")
        def test_it(): pass
    """)
    said = (
        "test_suite.py::test_it: @pytest.mark.budget(max_usd='abc'): 'abc' is not an amount of USD"
    )
    _one_line(suite.run("-n2"), said)


def test_a_mistyped_marker_argument(suite: Suite) -> None:
    suite.test_file("""
        @pytest.mark.budget(max_usdd=0.01)
        def test_it(): pass
    """)
    _one_line(suite.run(), "budget() has no argument 'max_usdd'; did you mean max_usd?")


@pytest.mark.parametrize("name", ["my-org/ci llm", "My-Org/CI-LLM"])
def test_an_endpoint_name_that_no_endpoint_can_have(suite: Suite, name: str) -> None:
    suite.test_file(f"""
        @pytest.mark.hf_endpoint("{name}")
        def test_it(): pass
    """)
    _one_line(suite.run(), f"endpoint '{name}': ")


def test_an_endpoint_marker_without_a_name(suite: Suite) -> None:
    suite.test_file("""
        @pytest.mark.hf_endpoint()
        def test_it(): pass
    """)
    _one_line(suite.run(), "hf_endpoint")


def test_an_endpoint_name_without_a_namespace(suite: Suite) -> None:
    suite.test_file("""
        @pytest.mark.hf_endpoint("llm")
        def test_it(): pass
    """)
    _one_line(suite.run(), "--hf-namespace")


@pytest.fixture
def real_addresses(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> Suite:
    """The emulator under the names of the real services: it invents no endpoint then."""
    monkeypatch.delenv("HFBUDGET_EMULATOR")
    monkeypatch.setenv("HFBUDGET_ENDPOINTS_API", f"{suite.emulator.url}/v2")
    monkeypatch.setenv("HFBUDGET_ROUTER", f"{suite.emulator.url}/router")
    return suite


@pytest.mark.parametrize("options", [(), ("-n2",)])
def test_an_unknown_endpoint(real_addresses: Suite, options: tuple[str, ...]) -> None:
    if options:
        pytest.importorskip("xdist")
    real_addresses.test_file("""
        @pytest.mark.hf_endpoint("acme/nowhere")
        def test_it(): pass
    """)
    _one_line(real_addresses.run(*options), "acme/nowhere")
    assert not real_addresses.requests("resume")


def test_an_unknown_endpoint_on_the_command_line(real_addresses: Suite) -> None:
    real_addresses.test_file("def test_it(): pass")
    _one_line(real_addresses.run("--hf-endpoint=acme/nowhere"), "acme/nowhere")


def test_a_wrong_token(real_addresses: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    real_addresses.emulator.add_endpoint("acme/llm")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    real_addresses.test_file("""
        @pytest.mark.hf_endpoint("acme/llm")
        def test_it(): pass
    """)
    result = real_addresses.run()
    _one_line(result, "HF_TOKEN")
    assert "hf_wrong" not in result.stdout.str() + result.stderr.str()
    assert not real_addresses.requests("resume")


def test_a_token_without_the_permission(
    real_addresses: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_addresses.emulator.add_endpoint("acme/llm")
    monkeypatch.setenv("HF_TOKEN", "hf_limited")
    real_addresses.test_file("""
        @pytest.mark.hf_endpoint("acme/llm")
        def test_it(): pass
    """)
    _one_line(real_addresses.run(), "Manage Inference Endpoints")


def test_no_token_at_all(real_addresses: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    real_addresses.emulator.add_endpoint("acme/llm")
    monkeypatch.delenv("HF_TOKEN")
    real_addresses.test_file("""
        @pytest.mark.hf_endpoint("acme/llm")
        def test_it(): pass
    """)
    _one_line(real_addresses.run(), "HF_TOKEN")


@pytest.mark.parametrize(
    ("toml", "says"),
    [
        ('["a/b"]\ninput = "cheap"', '["a/b"]: input = cheap'),
        ('["a/b"]\ninput = -1', '["a/b"]: input = -1'),
        ('["a/b"]\ninput = nan', '["a/b"]: input = NaN'),
        ('["a/b"]\nprice = 1', "unknown key 'price'"),
        ('["a/b"', "is not TOML"),
        ('["a/b"]\ninput = 1\noutput = -0.0', "(at line 3)"),
        pytest.param('["a/b"]\ncall = 1\ncall = 1', "line 3", marks=pytest.mark.slow),
        pytest.param("# \udce9\n", "byte 0xe9 is not UTF-8 (at line 1)", marks=pytest.mark.slow),
        pytest.param('["a/b"]\n', "has no price", marks=pytest.mark.slow),
    ],
)
def test_a_bad_price_file(suite: Suite, toml: str, says: str) -> None:
    (suite.path / "prices.toml").write_text(toml, errors="surrogateescape")
    suite.test_file("def test_it(): pass")
    _one_line(suite.run("--hf-prices=prices.toml"), says)


@pytest.mark.slow
def test_a_price_file_that_is_a_directory(suite: Suite) -> None:
    (suite.path / "prices.toml").mkdir()
    suite.test_file("def test_it(): pass")
    _one_line(suite.run("--hf-prices=prices.toml"), "prices.toml: can't be read (Is a directory)")


def test_a_bad_table_in_pyproject(suite: Suite) -> None:
    suite.pytester.makepyprojecttoml('[tool.hfbudget.prices]\n"a/b" = { inptu = 1 }\n')
    suite.test_file("def test_it(): pass")
    _one_line(suite.run("--hf-session-budget=1"), "pyproject.toml: [\"a/b\"]: unknown key 'inptu'")


def test_a_price_file_that_is_not_there(suite: Suite) -> None:
    suite.test_file("def test_it(): pass")
    _one_line(suite.run("--hf-prices=nowhere.toml"), "nowhere.toml: can't be read")


def test_a_policy_that_does_not_exist(suite: Suite) -> None:
    suite.test_file("def test_it(): pass")
    _one_line(suite.run("--hf-session-budget=1", "--hf-unpriced=maybe"), "--hf-unpriced=maybe")


def test_a_token_cost_that_is_none(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUGGINGFACE_INPUT_TOKEN_COST", "cheap")
    suite.test_file("def test_it(): pass")
    _one_line(suite.run("--hf-session-budget=1"), "HUGGINGFACE_INPUT_TOKEN_COST")


def test_a_pytest_that_is_too_old(suite: Suite) -> None:
    suite.test_file("def test_it(): pass")
    (suite.path / "old.py").write_text(
        "import sys, pytest\n"
        "pytest.version_tuple, pytest.__version__ = (7, 4, 4), '7.4.4'\n"
        "sys.exit(pytest.main([]))\n"
    )
    result = suite.pytester.runpython(suite.path / "old.py")
    _one_line(result, "needs pytest 8 or newer, and this is pytest 7.4.4: pip install --upgrade")
