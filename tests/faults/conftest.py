"""One emulator; a box for each test; and only the quick tests unless all are asked for."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_box import NAME, Box
from rows import rows_of

from pytest_hfbudget.emulator import Emulator

HERE = Path(__file__).parent


def pytest_configure(config: pytest.Config) -> None:
    """Make the markers known."""
    config.addinivalue_line("markers", "faults: ends of runs, killed for real; all with -m faults")
    config.addinivalue_line("markers", "quick: a fault that is tried in every run of the tests")


def pytest_itemcollected(item: pytest.Item) -> None:
    """All that is collected below this folder is about faults."""
    item.add_marker("faults")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the long ones out, unless they were asked for."""
    if "faults" in (config.option.markexpr or "") or any("faults/" in arg for arg in config.args):
        return
    left_out = {item for item in items if _is_here(item) and not item.get_closest_marker("quick")}
    if left_out:
        config.hook.pytest_deselected(items=list(left_out))
        items[:] = [item for item in items if item not in left_out]


def pytest_report_collectionfinish(config: pytest.Config, items: list[pytest.Item]) -> str | None:
    """Say that there is more."""
    here = [item for item in items if _is_here(item)]
    if here and all(item.get_closest_marker("quick") for item in here):
        return f"tests/faults: {len(here)} quick ones; all of them with -m faults"
    return None


def _is_here(item: pytest.Item) -> bool:
    return item.path.parent == HERE


@pytest.fixture(scope="session")
def one_emulator() -> Iterator[Emulator]:
    """All of Hugging Face."""
    with Emulator() as emulator:
        yield emulator


@pytest.fixture
def box(one_emulator: Emulator, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Box]:
    """A box with one endpoint that sleeps; empty again at the end, whatever happened."""
    hub = one_emulator.client
    hub.reset()
    hub.add_endpoint(NAME)
    path = tmp_path / "box"
    path.mkdir()
    made = Box(hub, path, f"{os.getpid()}-{tmp_path.name}")
    yield made
    made.clear()
    hub.reset()
    _note(request.node, made)


def _note(test: pytest.Function, box: Box) -> None:
    """With ``FAULTS_TABLE``: what was measured, a JSON line for each verdict."""
    if path := os.environ.get("FAULTS_TABLE"):
        about = {"test": test.nodeid, "rows": rows_of(test.function.__doc__)}
        with Path(path).open("a") as file:
            file.writelines(json.dumps({**about, **seen}) + "\n" for seen in box.seen)
