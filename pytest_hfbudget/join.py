"""Joins the test run that has started this interpreter: ``import pytest_hfbudget.join``.

From then on the run's ledger holds each call of this process before it is sent, like the calls of
the test that is running. If no run with a cap has started this interpreter, nothing happens.

A program that can't be changed is started as ``python -m pytest_hfbudget.join app.py ARGS``, or
``python -m pytest_hfbudget.join -m module ARGS``.

Raises:
    LedgerUnreachableError: there was a run, and it is over: nothing may be spent any more.
"""

from __future__ import annotations

import os
import sys

from pytest_hfbudget.metering.runtime import VARIABLE, join

if path := os.environ.get(VARIABLE):
    join(path)


def main() -> None:
    """Run a script or a module, as ``python`` itself does."""
    from runpy import run_module, run_path

    program = sys.argv[1:]
    if not program or program == ["-m"]:
        sys.exit("usage: python -m pytest_hfbudget.join (app.py | -m module) [ARGS]")
    if program[0] == "-m":
        sys.argv = program[1:]
        run_module(program[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = program
        sys.path[0] = os.path.dirname(os.path.abspath(program[0]))
        run_path(program[0], run_name="__main__")


if __name__ == "__main__":
    main()
