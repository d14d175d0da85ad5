"""One Report value; terminal, JSON file, page and GitHub job are views of it.

`json_report` writes it and reads it back; `tables` holds the tables of the page, of
`hfbudget report` and of the summary of a GitHub job.
"""

from __future__ import annotations

from pytest_hfbudget.reporting.model import EndpointLine, Report, TestLine
from pytest_hfbudget.reporting.terminal import header, summary

__all__ = ["EndpointLine", "Report", "TestLine", "header", "summary"]
