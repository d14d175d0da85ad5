"""What all tools go through. Each experiment wants four times as many calls as the cap allows."""

import asyncio
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
import tool

CALLS, AT_ONCE, CHILDREN = 40, 8, 4
CHILD = f"""
import tool
tool.join()
with tool.worker_budget():
    for _ in range({CALLS // CHILDREN}):
        tool.ask()
"""


def test_few():
    with tool.budget():
        for _ in range(3):
            tool.ask()


def test_loop():
    with tool.budget():
        for _ in range(CALLS):
            tool.ask()


def test_swallowing():
    with tool.budget():
        for _ in range(CALLS):
            with suppress(Exception):
                tool.ask()


def test_streams():
    with tool.budget():
        for _ in range(CALLS):
            tool.stream()


def test_threads():
    def work(_):
        with tool.worker_budget():
            for _ in range(CALLS // AT_ONCE):
                tool.ask()

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(work, range(AT_ONCE)))


def test_plain_threads():
    with tool.budget(), ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda _: tool.ask(), range(CALLS)))


def test_tasks():
    async def work():
        with tool.worker_budget():
            for _ in range(CALLS // AT_ONCE):
                await tool.ask_async()

    async def main():
        works = (work() for _ in range(AT_ONCE))
        return await asyncio.gather(*works, return_exceptions=True)

    failed = [end for end in asyncio.run(main()) if end is not None]
    assert not failed, failed


def test_children():
    children = [subprocess.Popen([sys.executable, "-c", CHILD]) for _ in range(CHILDREN)]
    assert [child.wait() for child in children] == [0] * CHILDREN


@pytest.fixture(scope="module")
def open_budget():
    with tool.budget():
        yield


@pytest.mark.parametrize("number", range(CALLS))
def test_one_of_many(open_budget, number):
    tool.ask()
