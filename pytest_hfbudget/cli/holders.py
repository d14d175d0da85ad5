"""Who has an endpoint in use: runs of this machine by their claims, others by their tags."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from pytest_hfbudget.cli import output
from pytest_hfbudget.endpoints.api import ControlPlane, ControlPlaneError
from pytest_hfbudget.endpoints.journal import default_state_dir
from pytest_hfbudget.endpoints.lease_store import lease_store_dir, read_held_leases
from pytest_hfbudget.endpoints.sweep import StrayEndpoint, find_local
from pytest_hfbudget.endpoints.types import tagged_run, tagged_until


@dataclass(frozen=True)
class EndpointUser:
    """A run that has an endpoint in use; ``who`` is a clause for people."""

    run: str
    who: str


@dataclass(frozen=True)
class Records:
    """What this machine knows at one time.

    Attributes:
        users: by endpoint, the live run that uses it.
        strays: by endpoint, what a dead run has left.
    """

    users: dict[str, EndpointUser]
    strays: dict[str, StrayEndpoint]

    @classmethod
    def read(cls, api: str, state_dir: Path | None = None) -> Records:
        """As of now, for one control plane."""
        folder = state_dir or default_state_dir()
        claims = [
            one
            for one in read_held_leases(lease_store_dir(folder))
            if one.api.rstrip("/") == api and one.in_use
        ]
        users = {one.endpoint: EndpointUser(one.run, f"process {one.owner_pid}") for one in claims}
        strays = find_local(folder, api=api, kept=True)
        return cls(users, {stray.name: stray for stray in strays})

    def user(self, plane: ControlPlane, name: str) -> EndpointUser | None:
        """The run that uses an endpoint, on this machine or, as far as tags tell, on another."""
        if name in self.users or name in self.strays:
            return self.users.get(name)
        try:
            marks = plane.get(name).tags
        except ControlPlaneError:
            return None  # the attempt to pause it will tell what is wrong
        run, until = tagged_run(marks), tagged_until(marks)
        if run is None or until is None or until < time.time():
            return None
        return EndpointUser(run, f"not of this machine, until {output.clock_time(until)}")
