"""How many runs there are, which, and how machines were cut off; one emulator for all of them."""

from __future__ import annotations

import ssl
from collections import Counter
from collections.abc import Iterator
from functools import cache

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


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """With what machines were cut off, which is not the same where namespaces are not permitted."""
    reports = (one for every in terminalreporter.stats.values() for one in every)
    told = [one.user_properties for one in reports if getattr(one, "when", "") == "call"]
    kinds = Counter(kind for each in told for name, kind in each if name == "partitions")
    for kind, count in kinds.items():
        terminalreporter.write_line(f"Runs with partitions by {kind}: {count}")


@pytest.fixture(scope="session")
def one_emulator() -> Iterator[Emulator]:
    patch = pytest.MonkeyPatch()
    # Nothing speaks TLS here, and reading all certificates for each async client takes longest.
    patch.setattr(ssl, "create_default_context", cache(ssl.create_default_context))
    with Emulator() as emulator:
        yield emulator
    patch.undo()
