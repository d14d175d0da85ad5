"""The example of docs/report.md is a report, and every key that it explains is one."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema
from written_report import saved

from pytest_hfbudget.reporting.json_report import SCHEMA_FILE

PAGE = (Path(__file__).parents[2] / "docs" / "report.md").read_text(encoding="utf-8")
SCHEMA = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))


def test_the_example_is_a_report() -> None:
    example = json.loads(PAGE.partition("```json\n")[2].partition("```")[0])
    jsonschema.validate(example, SCHEMA)
    assert saved(example).spent == 554_900


def test_every_key_of_the_docs_is_in_the_schema() -> None:
    parts = SCHEMA["properties"]
    for part in ("session", "tests", "shared", "calls", "refusals", "endpoints"):
        explained = PAGE.partition(f"### `{part}`")[2].partition("###")[0]
        rows = re.findall(r"^\| (`.*?`) \|", explained, re.MULTILINE)
        keys = re.findall(r"`(\w+)`", " ".join(rows))
        assert keys, part
        assert set(keys) <= set(parts[part].get("items", parts[part])["properties"]), part
