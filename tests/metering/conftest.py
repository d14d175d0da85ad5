"""The fixtures of these tests; what they are made of has a module name of its own."""

from __future__ import annotations

from metering_bench import bench, one_emulator

__all__ = ["bench", "one_emulator"]
