"""The public list of hardware: what a replica costs by the hour, kept on disk with its date."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from pytest_hfbudget.endpoints.api_errors import ControlPlaneError
from pytest_hfbudget.endpoints.types import Endpoint, objects
from pytest_hfbudget.files import cache_file, keep, kept
from pytest_hfbudget.money import parse_rate
from pytest_hfbudget.text import public_url


@dataclass(frozen=True)
class HardwareList:
    """``GET /v2/provider`` of a control plane.

    Attributes:
        vendors: the answer as it came.
        read_at: unix seconds.
        problem: why it is not today's, where it is the copy on disk.
    """

    vendors: Mapping[str, Any]
    read_at: float = 0.0
    problem: str = ""

    @property
    def day(self) -> str:
        """The day on which it was read."""
        return datetime.fromtimestamp(self.read_at, timezone.utc).date().isoformat()


@dataclass(frozen=True)
class HardwareFile:
    """The copy on disk, so that a run still knows its prices when the list can't be read."""

    path: Path
    origin: str

    @classmethod
    def of(cls, api: str) -> HardwareFile:
        """Where the list of a control plane is kept for this user."""
        return cls(cache_file("hardware", api), api)

    def load(self) -> HardwareList | None:
        """What was read last from this control plane, if anything."""
        try:
            copy = kept(self.path)
            listed = HardwareList(copy["hardware"], float(copy["read_at"]))
            of_this = copy["origin"] == self.origin and bool(listed.day)
            return listed if of_this and _is_list(listed.vendors) else None
        except (OSError, ValueError, KeyError, TypeError, OverflowError):
            return None  # absent or damaged: the next list that is read replaces it

    def read(self, ask: Callable[[], Mapping[str, Any]], now: float) -> HardwareList:
        """The list of today, or the copy where that can't be had.

        Raises:
            ControlPlaneError: neither the one nor the other.
        """
        try:
            vendors = self._checked(ask())
        except ControlPlaneError as error:
            copy = self.load()
            if copy is None:
                raise
            return HardwareList(copy.vendors, copy.read_at, str(error))
        keep(self.path, {"origin": self.origin, "read_at": now, "hardware": vendors})
        return HardwareList(vendors, now)

    def _checked(self, answer: Mapping[str, Any]) -> Mapping[str, Any]:
        if not _is_list(answer):
            raise ControlPlaneError(
                f"{public_url(self.origin)}/provider did not answer with a list."
            )
        return answer


def price_per_hour(hardware: Mapping[str, Any], endpoint: Endpoint) -> int | None:
    """Atto-USD per replica-hour from the public list of hardware; None if it is not listed.

    Joined on vendor, region, instance type and size. Should an instance be listed more than
    once, the most expensive counts. An invalid price, or zero, is a gap in the list.
    """
    prices = [
        _rate(compute.get("pricePerHour"))
        for vendor in _named(hardware.get("vendors"), endpoint.vendor)
        for region in _named(vendor.get("regions"), endpoint.region)
        for compute in objects(region.get("computes"))
        if compute.get("instanceType") == endpoint.instance_type
        and compute.get("instanceSize") == endpoint.instance_size
    ]
    return max(prices, default=0) or None


def _rate(value: object) -> int:
    try:
        return parse_rate(value)
    except ValueError:
        return 0


def _named(items: object, name: str) -> Iterator[Mapping[str, Any]]:
    return (item for item in objects(items) if item.get("name") == name)


def _is_list(hardware: object) -> bool:
    return isinstance(hardware, Mapping) and isinstance(hardware.get("vendors"), list)
