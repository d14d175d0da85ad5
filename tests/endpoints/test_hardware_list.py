"""The price of an hour: read from the control plane, and from the copy when that is silent."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pytest_hfbudget.emulator import EmulatorClient
from pytest_hfbudget.endpoints.api import ControlPlane, ControlPlaneError
from pytest_hfbudget.endpoints.uptime_meter import HardwareFile

from .conftest import Make

JUNE_1 = 1780272000.0


@pytest.fixture
def file(plane: ControlPlane) -> HardwareFile:
    """Where the copy of the emulator's list is, once there is one."""
    return HardwareFile.of(plane.base_url)


def silence(hub: EmulatorClient) -> None:
    hub.add_fault(op="provider", status=503, times=None)


def test_a_list_that_was_read_is_kept_with_its_date(
    plane: ControlPlane, file: HardwareFile
) -> None:
    assert file.load() is None
    listed = file.read(plane.hardware, JUNE_1)
    assert (listed.day, listed.problem) == ("2026-06-01", "")
    assert file.load() == listed
    assert file.path.parent == Path(os.environ["HFBUDGET_CACHE_DIR"])


@pytest.mark.slow
def test_a_list_that_can_not_be_read_is_replaced_by_the_copy(
    hub: EmulatorClient, plane: ControlPlane, file: HardwareFile
) -> None:
    read = file.read(plane.hardware, JUNE_1)
    silence(hub)
    listed = file.read(plane.hardware, JUNE_1 + 86_400)
    assert (listed.vendors, listed.day) == (read.vendors, "2026-06-01")
    assert "503" in listed.problem


def test_without_a_copy_the_error_is_raised(
    hub: EmulatorClient, plane: ControlPlane, file: HardwareFile
) -> None:
    silence(hub)
    with pytest.raises(ControlPlaneError):
        file.read(plane.hardware, JUNE_1)


def test_an_answer_that_is_no_list_does_not_replace_the_copy(
    plane: ControlPlane, file: HardwareFile
) -> None:
    read = file.read(plane.hardware, JUNE_1)
    listed = file.read(lambda: {"error": "maintenance"}, JUNE_1 + 86_400)
    assert listed.vendors == read.vendors
    assert file.load() == read


@pytest.mark.parametrize(
    "damage",
    [
        "",
        "[]",
        "[" * 100_000,
        '{"origin": "https://other", "read_at": 0, "hardware": {"vendors": []}}',
    ],
)
def test_a_damaged_or_foreign_copy_is_none(
    plane: ControlPlane, file: HardwareFile, damage: str
) -> None:
    file.read(plane.hardware, JUNE_1)
    file.path.write_text(damage)
    assert file.load() is None


def test_a_copy_without_a_sensible_date_is_none(plane: ControlPlane, file: HardwareFile) -> None:
    file.read(plane.hardware, JUNE_1)
    kept = json.loads(file.path.read_text())
    file.path.write_text(json.dumps({**kept, "read_at": 1e300}))
    assert file.load() is None


def test_a_run_uses_the_price_of_the_copy_and_says_so(hub: EmulatorClient, lifecycle: Make) -> None:
    lifecycle().ensure("acme/llm")
    hub.add_endpoint("acme/other")
    silence(hub)
    run = lifecycle(run="run-2")
    run.ensure("acme/other")
    (receipt,) = run.finish()
    assert receipt.cost.price_nano_per_hour
    assert receipt.cost.nano_usd > 0
    assert any("its price is that of 20" in warning for warning in receipt.warnings)
