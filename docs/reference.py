"""The pages of the reference that are made from the code."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from importlib.resources import files
from typing import Any

from pytest_hfbudget.settings import SETTINGS, Setting


def pages() -> Mapping[str, str]:
    """The text of each page by the name of its file."""
    return {"settings.md": _settings(), "report-schema.md": _schema()}


def _settings() -> str:
    rows = "".join(_setting(each) for each in SETTINGS.values())
    return (
        "# All settings\n\n"
        "Made from the table of settings in the code. A value on the command line overrides the "
        "environment, which overrides the ini file.\n\n"
        "| option | environment | ini | what |\n|---|---|---|---|\n" + rows
    )


def _setting(setting: Setting[Any]) -> str:
    option = f"{setting.option} {setting.metavar}".strip()
    names = (f"`{name}`" if name else "" for name in (option, setting.variable, setting.ini))
    return f"| {' | '.join(names)} | {setting.help.replace('|', chr(92) + '|')} |\n"


def _schema() -> str:
    text = files("pytest_hfbudget.reporting").joinpath("report.schema.json").read_text("utf-8")
    schema = json.loads(text)
    rows = "".join(f"| `{path}` | {kind} | {what} |\n" for path, kind, what in _fields(schema, ""))
    return (
        "# The JSON report\n\n"
        "Made from the JSON schema of the report, which `pytest --hf-report FILE` writes.\n\n"
        "| field | type | what |\n|---|---|---|\n" + rows
    )


def _fields(schema: Mapping[str, Any], path: str) -> Iterator[tuple[str, str, str]]:
    definitions = schema.get("$defs", {})

    def walk(part: Mapping[str, Any], name: str) -> Iterator[tuple[str, str, str]]:
        if "$ref" in part:
            part = {**definitions[part["$ref"].rpartition("/")[2]], **part}
        kind = part.get("type", "")
        kinds = ", ".join(kind) if isinstance(kind, list) else str(kind)
        if name:
            yield name, kinds, str(part.get("description", ""))
        for key, each in part.get("properties", {}).items():
            yield from walk(each, f"{name}.{key}".lstrip("."))
        for inner in (part.get("items"), part.get("additionalProperties")):
            if isinstance(inner, dict):
                for key, kinds_, what in walk(inner, f"{name}[]"):
                    if key != f"{name}[]":
                        yield key, kinds_, what

    yield from walk(schema, path)
