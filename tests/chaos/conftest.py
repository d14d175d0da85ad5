"""How many runs there are, and which; one emulator for all of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pytest_hfbudget.emulator import Emulator

SAMPLE = 30


def pytest_addoption(parser: pytest.Parser) -> None:
    """Only known where this folder is named on the command line."""
    parser.addoption("--chaos", type=int, default=SAMPLE, help="how many randomised runs")
    parser.addoption("--seed", type=int, default=None, help="one randomised run again")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test for each seed."""
    if "seed" in metafunc.fixturenames:
        only = metafunc.config.getoption("--seed", None)
        count = metafunc.config.getoption("--chaos", SAMPLE)
        metafunc.parametrize("seed", range(count) if only is None else [only])


@pytest.fixture(scope="session")
def one_emulator() -> Iterator[Emulator]:
    with Emulator() as emulator:
        yield emulator
