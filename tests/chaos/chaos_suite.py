"""A randomised test suite, as a file for pytest: each test has a token of its own."""

from __future__ import annotations

import random
from dataclasses import dataclass

HEAD = """
import os
from concurrent.futures import ThreadPoolExecutor

import pytest
from huggingface_hub import InferenceClient


def make(number, at, words, limit, stream, ending):
    token = f"hf_chaos_{number}_{at}"
    client = InferenceClient(model="emulator/chat", provider="groq", token=token)
    say = [{"role": "user", "content": f"Say something. [[tokens={words}]]"}]
    answer = client.chat_completion(say, max_tokens=limit, stream=stream)
    if stream and ending == "read":
        list(answer)
    elif stream:
        next(answer)
    return client, answer
"""
TEST = """
{marker}
def test_{number}():
    steps = {steps!r}
    with ThreadPoolExecutor({threads}) as pool:
        made = [pool.submit(make, {number}, at, *step) for at, step in enumerate(steps)]
    kept = [each.result() for each in made if each.exception() is None]
    {end}
"""
# Calls that come after the report, in every process: under a cap none of them may be sent.
LATE = """
import atexit

import pytest
from test_suite import make


def late(at):
    try:
        make("late", at, 3, 5, False, "")
    except Exception:
        pass


@pytest.hookimpl(trylast=True)
def pytest_unconfigure():
    late("unconfigure")


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary():
    late("summary")


atexit.register(late, "exit")
"""
DEATHS = ("os._exit(3)", "os.kill(os.getpid(), 9)")


@dataclass(frozen=True)
class SuiteTest:
    """One test: its cap in nano-USD, its calls, and whether it takes its worker with it."""

    number: int
    cap: int | None
    steps: tuple[tuple[int, int, bool, str], ...]
    threads: int
    dies: str = ""

    @property
    def code(self) -> str:
        usd = None if self.cap is None else f"{self.cap / 10**9:.9f}"
        marker = "" if usd is None else f"@pytest.mark.budget(max_usd={usd!r})"
        end = self.dies or "assert len(made) == len(steps)"
        return TEST.format(
            marker=marker, number=self.number, steps=self.steps, threads=self.threads, end=end
        )


@dataclass(frozen=True)
class SuitePlan:
    """A suite of tests under one cap, for so many workers."""

    cap: int
    workers: int
    tests: tuple[SuiteTest, ...]

    @property
    def code(self) -> str:
        return HEAD + "\n".join(test.code for test in self.tests)


def suite_of(seed: int) -> SuitePlan:
    """The suite of a seed."""
    draw = random.Random(seed)
    tests = tuple(_test(draw, number) for number in range(draw.randint(8, 20)))
    cap = draw.choice((30_000, 100_000, 300_000, 10**9))
    return SuitePlan(cap, draw.choice((2, 4)), tests)


def _test(draw: random.Random, number: int) -> SuiteTest:
    steps = tuple(
        (
            draw.choice((1, 5, 20)),
            draw.choice((1, 20, 50)),
            draw.random() < 0.5,
            draw.choice(("read", "read", "keep")),
        )
        for _ in range(draw.randint(1, 4))
    )
    cap = draw.choice((0, 20_000, 60_000, 10**9)) if draw.random() < 0.5 else None
    dies = draw.choice(DEATHS) if draw.random() < 0.08 else ""
    return SuiteTest(number, cap, steps, draw.randint(1, 3), dies)
