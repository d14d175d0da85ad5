"""`hfbudget demo`: the whole product in a few seconds, at $0."""

from __future__ import annotations

from pytest_hfbudget.demo.show import Demo

__all__ = ["Demo"]
