"""This plugin: --hf-session-budget is the cap, so the code opens no budget."""

from contextlib import nullcontext

from common import ask, ask_async, stream

__all__ = ["ask", "ask_async", "budget", "join", "stream", "worker_budget"]
budget = worker_budget = nullcontext


def join():
    import pytest_hfbudget.join  # noqa: F401
