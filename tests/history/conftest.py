"""The fixtures of these tests; what they are made of has a module name of its own."""

from __future__ import annotations

from run_books import project

__all__ = ["project"]
