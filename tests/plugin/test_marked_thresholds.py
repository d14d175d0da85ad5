"""warn_at, fallback and max_calls of markers, and budgets that several tests share."""

from __future__ import annotations

import pytest
from plugin_suite import Suite

pytestmark = pytest.mark.slow

WARNS = """
    @pytest.mark.budget(max_usd=0.01, warn_at=0.1, price={"call": 0.001})
    def test_it():
        call()
        call()

    def test_next():
        pass
"""


def test_a_test_that_crosses_has_one_warning(suite: Suite) -> None:
    suite.test_file(WARNS)
    result = suite.run()
    result.assert_outcomes(passed=2, warnings=1)
    result.stdout.fnmatch_lines(
        ["*HFBudgetWarning: test_suite.py::test_it: $0.001 of $0.01 spent (warn_at=0.1)"]
    )


def test_warnings_as_errors_fail_the_test_that_crossed_after_its_charge(suite: Suite) -> None:
    suite.test_file(WARNS)
    result = suite.run("-W", "error", "--hf-report=report.json")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["HFBudgetWarning: test_suite.py::test_it: *"])
    assert suite.report()["tests"][0]["spent_usd"] == "0.002"
    assert suite.sent == 2


def test_a_block_in_a_test_warns_there(suite: Suite) -> None:
    suite.test_file("""
        from pytest_hfbudget import HFBudgetWarning

        def test_it():
            with pytest.warns(HFBudgetWarning):
                with budget(max_usd=0.01, warn_at=0.1, price={"call": 0.001}):
                    call()
    """)
    suite.run().assert_outcomes(passed=1)


@pytest.mark.parametrize("workers", [(), ("-n2",)], ids=["alone", "workers"])
def test_a_class_that_shares_a_budget_is_warned_once(
    suite: Suite, workers: tuple[str, ...]
) -> None:
    if workers:
        pytest.importorskip("xdist")
    suite.test_file("""
        @pytest.mark.budget(max_usd=1, warn_at=0.001, scope="class", price={"call": 0.001})
        class TestIt:
            @pytest.mark.parametrize("n", range(8))
            def test_it(self, n):
                call()
    """)
    suite.run(*workers).assert_outcomes(passed=8, warnings=1)


def test_a_marker_takes_a_cheaper_model_and_the_report_names_it(suite: Suite) -> None:
    suite.emulator.add_model("acme/cheap", provider="groq", price={"input": "1", "output": "1"})
    (suite.path / "prices.toml").write_text('["acme/cheap"]\ninput = 1\noutput = 1\n')
    suite.test_file("""
        @pytest.mark.budget(max_usd=1, fallback={"at_pct": 0, "model": "acme/cheap"})
        def test_it():
            call()
    """)
    result = suite.run("--hf-prices=prices.toml", "--hf-report=report.json")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        ["  1 call with a fallback, <$0.0001: acme/cheap instead of emulator/chat"]
    )
    (swapped,) = suite.report()["calls"]
    assert (swapped["model"], swapped["instead_of"]) == ("acme/cheap", "emulator/chat")
    assert round(float(swapped["usd"]) * 10**9) == suite.billed


def test_a_part_of_the_test_budget_of_the_run_will_do(suite: Suite) -> None:
    suite.test_file("""
        @pytest.mark.budget(warn_at=0.1, price={"call": 0.001})
        def test_it():
            call()
    """)
    suite.run("--hf-test-budget=0.01").assert_outcomes(passed=1, warnings=1)


@pytest.mark.parametrize(
    "arguments",
    ["warn_at=0.8", "max_usd=1, warn_at=8", "max_usd=1, fallback={'at_pct': 1}"],
)
def test_a_part_that_makes_no_sense_is_a_usage_error(suite: Suite, arguments: str) -> None:
    suite.test_file(f"""
        @pytest.mark.budget({arguments})
        def test_it(): pass
    """)
    result = suite.run()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    (line,) = (line for line in result.errlines if line.startswith("ERROR: "))
    assert line.startswith("ERROR: test_suite.py::test_it: ")


@pytest.mark.parametrize("workers", [(), ("-n2",)], ids=["alone", "workers"])
@pytest.mark.parametrize("scope", ["class", "module", "package", "session"])
def test_a_shared_budget_is_one_cap_wherever_its_tests_run(
    suite: Suite, scope: str, workers: tuple[str, ...]
) -> None:
    if workers:
        pytest.importorskip("xdist")
    package = suite.path / "package"
    package.mkdir()
    (package / "__init__.py").touch()
    suite.test_file(
        f"""
        pytestmark = pytest.mark.budget(max_calls=3, scope="{scope}")

        class TestIt:
            @pytest.mark.parametrize("n", range(8))
            def test_it(self, n):
                call()
        """,
        "package/test_suite.py",
    )
    suite.run(*workers).assert_outcomes(passed=3, failed=5)
    assert suite.sent == 3


def test_modules_of_a_package_share_its_budget(suite: Suite) -> None:
    package = suite.path / "package"
    package.mkdir()
    (package / "__init__.py").touch()
    for name in ("test_one.py", "test_two.py"):
        suite.test_file(
            """
            pytestmark = pytest.mark.budget(max_calls=1, scope="package")

            def test_it():
                call()
            """,
            f"package/{name}",
        )
    suite.run().assert_outcomes(passed=1, failed=1)
