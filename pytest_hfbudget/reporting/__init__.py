"""One Report value; the terminal section and the JSON file are views of it."""

from __future__ import annotations

from pytest_hfbudget.reporting.report import EndpointLine, Report, TestLine
from pytest_hfbudget.reporting.terminal import header, summary

__all__ = ["EndpointLine", "Report", "TestLine", "header", "summary"]
