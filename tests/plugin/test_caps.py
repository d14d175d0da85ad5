"""Caps of tests and of the session, as a suite sees them."""

from __future__ import annotations

import pytest
from plugin_suite import Suite

TINY = "0.00003"  # holds one small call, not two


def test_a_test_within_its_cap_passes(suite: Suite) -> None:
    suite.test_file("""
        @pytest.mark.budget(max_usd=0.1)
        def test_it():
            call()
    """)
    suite.run().assert_outcomes(passed=1)
    assert suite.sent == 1


def test_a_refused_call_fails_its_test_and_is_not_sent(suite: Suite) -> None:
    suite.test_file("""
        @pytest.mark.budget(max_usd=0)
        def test_it():
            call()
    """)
    result = suite.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*BudgetExceededError: test_suite.py::test_it: emulator/chat *"])
    assert suite.sent == 0


def test_the_traceback_ends_at_the_users_own_call(suite: Suite) -> None:
    suite.test_file("""
        @pytest.mark.budget(max_usd=0)
        def test_it():
            call()
    """)
    result = suite.run("--tb=short")
    result.stdout.no_fnmatch_line("*metering/tap.py*")


def test_a_swallowed_refusal_fails_the_test_all_the_same(suite: Suite) -> None:
    suite.test_file("""
        @pytest.mark.budget(max_usd=0)
        def test_it():
            try:
                call()
            except Exception:
                pass
    """)
    result = suite.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["refused, though the test passed: test_suite.py::test_it: *"])


def test_a_refusal_in_a_thread_fails_the_test(suite: Suite) -> None:
    suite.test_file("""
        from concurrent.futures import ThreadPoolExecutor

        @pytest.mark.budget(max_usd=0)
        def test_it():
            with ThreadPoolExecutor() as pool:
                pool.submit(call)
    """)
    suite.run().assert_outcomes(failed=1)


def test_on_exceed_raise_leaves_it_to_the_test(suite: Suite) -> None:
    suite.test_file("""
        @pytest.mark.budget(max_usd=0, on_exceed="raise")
        def test_it():
            with pytest.raises(BudgetExceededError):
                call()
    """)
    suite.run().assert_outcomes(passed=1)


@pytest.mark.parametrize("level", ["function", "class", "module"])
def test_a_marker_works_at_every_level(suite: Suite, level: str) -> None:
    mark = dict.fromkeys(("function", "class", "module"), "")
    mark[level] = "@pytest.mark.budget(max_usd=0)"
    suite.test_file(f"""
        {"pytestmark = pytest.mark.budget(max_usd=0)" if level == "module" else ""}
        {mark["class"]}
        class TestIt:
            {mark["function"]}
            def test_it(self):
                call()
    """)
    suite.run().assert_outcomes(failed=1)
    assert suite.sent == 0


def test_the_closest_marker_counts(suite: Suite) -> None:
    suite.test_file("""
        pytestmark = pytest.mark.budget(max_usd=0)

        @pytest.mark.budget(max_usd=1)
        def test_it():
            call()
    """)
    suite.run().assert_outcomes(passed=1)


def test_a_class_can_share_one_budget(suite: Suite) -> None:
    suite.test_file("""
        @pytest.mark.budget(max_calls=2, scope="class")
        class TestIt:
            @pytest.mark.parametrize("n", range(3))
            def test_it(self, n):
                call()
    """)
    suite.run().assert_outcomes(passed=2, failed=1)
    assert suite.sent == 2


def test_each_test_of_a_marked_class_has_a_budget_of_its_own(suite: Suite) -> None:
    suite.test_file("""
        @pytest.mark.budget(max_calls=1)
        class TestIt:
            @pytest.mark.parametrize("n", range(3))
            def test_it(self, n):
                call()
    """)
    suite.run().assert_outcomes(passed=3)


def test_the_session_budget_holds_over_all_tests(suite: Suite) -> None:
    suite.test_file("""
        @pytest.mark.parametrize("n", range(40))
        def test_it(n):
            call()
    """)
    result = suite.run(f"--hf-session-budget={TINY}", "--hf-on-exhausted=fail")
    outcomes = result.parseoutcomes()
    assert outcomes["passed"] == suite.sent
    assert outcomes["failed"] == 40 - suite.sent
    assert 0 < suite.billed <= 30_000


def test_the_test_budget_is_for_tests_without_a_marker(suite: Suite) -> None:
    suite.test_file("""
        def test_without():
            call()

        @pytest.mark.budget(max_usd=1)
        def test_with():
            call()
    """)
    suite.run("--hf-test-budget=0").assert_outcomes(passed=1, failed=1)


@pytest.mark.parametrize(
    ("option", "variable", "ini", "passes"),
    [
        ("1", "0", "0", True),
        ("0", "1", "1", False),
        ("", "1", "0", True),
        pytest.param("", "0", "1", False, marks=pytest.mark.slow),
        pytest.param("", "", "1", True, marks=pytest.mark.slow),
        ("", "", "0", False),
    ],
)
def test_command_line_goes_before_environment_before_ini(
    suite: Suite,
    monkeypatch: pytest.MonkeyPatch,
    option: str,
    variable: str,
    ini: str,
    passes: bool,
) -> None:
    suite.test_file("def test_it(): call()")
    if variable:
        monkeypatch.setenv("HFBUDGET_SESSION", variable)
    suite.pytester.makeini(f"[pytest]\nhf_session_budget = {ini}")
    options = [f"--hf-session-budget={option}"] if option else []
    assert (suite.run(*options).ret == 0) is passes


def test_calls_of_a_session_fixture_go_to_the_session(suite: Suite) -> None:
    suite.test_file("""
        @pytest.fixture(scope="session")
        def answer():
            return call()

        @pytest.mark.budget(max_usd=0)
        def test_it(answer):
            pass
    """)
    result = suite.run("--hf-session-budget=1")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*1 call of no test, <$0.0001: session fixture answer"])


def test_calls_at_import_are_under_the_session_budget(suite: Suite) -> None:
    suite.test_file("""
        with pytest.raises(BudgetExceededError):
            call()

        def test_it():
            pass
    """)
    suite.run("--hf-session-budget=0").assert_outcomes(passed=1)
    assert suite.sent == 0


def test_reruns_of_a_test_share_its_budget(suite: Suite) -> None:
    pytest.importorskip("pytest_rerunfailures")
    suite.test_file("""
        @pytest.mark.budget(max_calls=2)
        def test_it():
            call()
            assert False, "flaky"
    """)
    assert suite.run("--reruns=5").parseoutcomes() == {"failed": 1, "rerun": 5}
    assert suite.sent == 2


def test_a_call_without_a_limit_is_answered_under_a_cap(suite: Suite) -> None:
    """Of this model's offers one names no context, and they differ: no limit may be too long."""
    suite.test_file("""
        @pytest.mark.budget(max_usd=0.05)
        def test_it():
            client = InferenceClient(model="meta-llama/Llama-3.1-8B-Instruct")
            assert client.chat_completion(SAY).choices[0].finish_reason == "stop"
    """)
    suite.run().assert_outcomes(passed=1)


def test_an_unpriced_call_shows_the_lines_to_add(suite: Suite) -> None:
    suite.test_file("""
        @pytest.mark.budget(max_usd=1)
        def test_it():
            call(model="acme/unheard-of")
    """)
    result = suite.run()
    result.stdout.fnmatch_lines(['*["acme/unheard-of:groq"]*', "*input = 0.00*", "*output = 0.00*"])
    assert suite.sent == 0


@pytest.mark.parametrize(
    "source",
    [
        "file",
        "environment",
        *(
            pytest.param(s, marks=pytest.mark.slow)
            for s in ("pyproject", "assume", "hook", "marker")
        ),
    ],
)
def test_a_price_can_be_given_in_many_places(
    suite: Suite, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    suite.emulator.add_model("acme/new", provider="together", price={"input": "1", "output": "4"})
    row = '"acme/new"]\ninput = 1\noutput = 4\n'
    options = []
    argument = ""
    if source == "file":
        (suite.path / "prices.toml").write_text(f"[{row}")
        options = ["--hf-prices=prices.toml"]
    elif source == "pyproject":
        suite.pytester.makepyprojecttoml(f"[tool.pytest.ini_options]\n[tool.hfbudget.prices.{row}")
    elif source == "environment":
        monkeypatch.setenv("HUGGINGFACE_INPUT_TOKEN_COST", "0.000001")
        monkeypatch.setenv("HUGGINGFACE_OUTPUT_TOKEN_COST", "0.000004")
    elif source == "assume":
        options = ["--hf-unpriced=assume:1/4"]
    elif source == "hook":
        suite.pytester.makeconftest("""
            def pytest_hfbudget_price(request):
                return {"input": 1, "output": 4} if request.model == "acme/new" else None
        """)
    else:
        argument = ', price={"input": 1, "output": 4}'
    suite.test_file(f"""
        @pytest.mark.budget(max_usd=1{argument})
        def test_it():
            call(model="acme/new", provider="together")
    """)
    suite.run("--hf-report=report.json", *options).assert_outcomes(passed=1)
    spent = suite.report()["session"]["spent_usd"]
    assert spent == f"{suite.billed / 10**9:f}".rstrip("0")


def test_a_marker_that_states_a_price_takes_no_cap_away(suite: Suite) -> None:
    suite.test_file("""
        pytestmark = pytest.mark.budget(max_usd=0)

        @pytest.mark.budget(price={"input": 1, "output": 1})
        def test_price():
            call()

        @pytest.mark.budget(max_calls=5)
        def test_calls():
            call()
    """)
    suite.run().assert_outcomes(failed=2)
    assert suite.sent == 0


def test_a_refusal_that_a_shared_fixture_swallowed_fails_the_test_it_was_set_up_for(
    suite: Suite,
) -> None:
    suite.test_file("""
        @pytest.fixture(scope="module")
        def answer():
            try:
                return call()
            except Exception:
                return None

        def test_it(answer):
            pass
    """)
    suite.run("--hf-session-budget=0", "--hf-on-exhausted=fail").assert_outcomes(errors=1)


def test_a_refusal_that_was_swallowed_at_import_fails_the_run(suite: Suite) -> None:
    suite.test_file("""
        try:
            call()
        except Exception:
            pass

        def test_it():
            pass
    """)
    result = suite.run("--hf-session-budget=0")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["refused outside of every test: session budget: *"])


def test_a_test_does_not_answer_for_what_was_refused_before_its_fixtures(suite: Suite) -> None:
    suite.test_file("""
        with pytest.raises(BudgetExceededError):
            call()

        @pytest.fixture(scope="session")
        def shared():
            pass

        def test_it(shared):
            pass
    """)
    suite.run("--hf-session-budget=0").assert_outcomes(passed=1)


def test_a_wrong_price_in_the_environment_does_not_fail_a_run_without_caps(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HUGGINGFACE_INPUT_TOKEN_COST", "abc")
    (suite.path / "test_suite.py").write_text(
        "from huggingface_hub import InferenceClient\n"
        "def test_it():\n"
        "    client = InferenceClient(model='emulator/chat', provider='groq')\n"
        "    assert client.chat_completion([{'role': 'user', 'content': 'Hello'}])\n"
    )
    result = suite.run()
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["hfbudget: no prices are known: HUGGINGFACE_INPUT_TOKEN_COST: *"])


def test_a_cache_that_can_not_be_written_costs_no_prices(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HFBUDGET_CACHE_DIR", "/dev/null/nowhere")
    suite.test_file("def test_it(): call()")
    suite.run("--hf-session-budget=1").assert_outcomes(passed=1)


def test_a_marker_that_comes_too_late_fails_its_test_alone(suite: Suite) -> None:
    suite.pytester.makeconftest("""
        import pytest

        def pytest_runtestloop(session):
            session.items[0].add_marker(pytest.mark.budget(max_usd="abc"))
    """)
    suite.test_file("""
        def test_one(): pass
        def test_two(): pass
    """)
    suite.run().assert_outcomes(errors=1, passed=1)


def test_a_wrong_setting_does_not_stand_in_the_way_of_help(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HFBUDGET_SESSION", "abc")
    result = suite.run("--help")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*--hf-session-budget=USD*"])
