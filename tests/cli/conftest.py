"""The fixtures of these tests; what they are made of has a module name of its own."""

from __future__ import annotations

from billed_runs import billed_runs
from command_line import emulator_of_the_commands, hfbudget

__all__ = ["billed_runs", "emulator_of_the_commands", "hfbudget"]
