"""One Report value; the terminal section and the JSON file are views of it.

`saved` reads such files back, and `tables` is what the page, `hfbudget report` and the summary of
a GitHub job are drawn from.
"""

from __future__ import annotations

from pytest_hfbudget.reporting.model import EndpointLine, Report, TestLine
from pytest_hfbudget.reporting.terminal import header, summary

__all__ = ["EndpointLine", "Report", "TestLine", "header", "summary"]
