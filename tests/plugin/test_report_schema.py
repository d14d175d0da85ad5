"""Reports of real runs, against the JSON Schema that is published with them."""

from __future__ import annotations

import json

import jsonschema
import pytest
from plugin_suite import Suite

from pytest_hfbudget.reporting.json_report import SCHEMA_FILE, read

pytestmark = pytest.mark.slow

SCHEMA = json.loads(SCHEMA_FILE.read_text())
CHECK = jsonschema.Draft202012Validator(
    SCHEMA, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
)
EVERYTHING = """
    early = call()

    @pytest.mark.budget(max_usd=0.1)
    def test_pays(): call()

    @pytest.mark.budget(max_usd=0)
    def test_is_refused(): call()

    @pytest.mark.hf_endpoint("acme/llm")
    def test_endpoint(hf_endpoint):
        hf_endpoint.client.chat_completion(SAY, max_tokens=20)
"""


@pytest.mark.parametrize(
    ("code", "options"),
    [(EVERYTHING, ["--hf-session-budget=1"]), ("def test_it(): pass", [])],
)
def test_the_report_of_a_run_is_valid_and_can_be_read(
    suite: Suite, code: str, options: list[str]
) -> None:
    suite.test_file(code)
    suite.run("--hf-report=report.json", *options)
    content = suite.report()
    CHECK.validate(content)
    report = read(suite.path / "report.json")
    assert len(report.charges) == len(content["calls"])
    assert report.run == content["run"] != ""
    assert report.date.isoformat() == content["date"]


def test_a_report_without_a_writer_does_not_fit_the_schema(suite: Suite) -> None:
    suite.test_file(EVERYTHING)
    suite.run("--hf-report=report.json")
    content = suite.report()
    for wrong in ("0.1e3", "-1", "NaN", 0.1, None, "0.0000000001"):
        content["session"]["spent_usd"] = wrong
        assert not CHECK.is_valid(content), wrong


def test_every_key_that_is_written_is_in_the_schema(suite: Suite) -> None:
    suite.test_file(EVERYTHING)
    suite.run("--hf-report=report.json")
    content = suite.report()
    known = SCHEMA["properties"]
    assert set(content) <= set(known)
    for part in ("tests", "calls", "refusals", "endpoints"):
        assert content[part], part
        for row in content[part]:
            assert set(row) <= set(known[part]["items"]["properties"]), part
