"""The fixtures of these tests; what they are made of has a module name of its own."""

from __future__ import annotations

from plugin_suite import one_emulator, real, reapers_end, suite

__all__ = ["one_emulator", "real", "reapers_end", "suite"]
