"""What `hfbudget status --shared` and `hfbudget report --shared` read from the server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from pytest_hfbudget.cli import output
from pytest_hfbudget.endpoints.journal import default_state_dir
from pytest_hfbudget.endpoints.shared_leases import RemoteLease, server_of, shared_leases
from pytest_hfbudget.errors import HFBudgetError
from pytest_hfbudget.money import beside, usd_text
from pytest_hfbudget.text import printable

if TYPE_CHECKING:
    from rich.console import RenderableType

    from pytest_hfbudget.history.shared_store import JobShare
    from pytest_hfbudget.shared import SharedPlace

_LEASES = ("endpoint", "job", "run", "machine", "phase", "heard of")
_SHARES = ("budget", "job", "advanced", "spent", "heard of")


@dataclass(frozen=True)
class SharedView:
    """Who holds what on the server: leases on endpoints, and advances on budgets."""

    leases: tuple[RemoteLease, ...]
    shares: tuple[JobShare, ...]
    expiry_s: float

    @classmethod
    def of(cls, place: SharedPlace, api: str) -> SharedView:
        """One look.

        Raises:
            click.ClickException: the server can't be asked.
        """
        from pytest_hfbudget.history.shared_store import read_shares

        try:
            by_name = shared_leases(place, api=api, state_dir=default_state_dir())
            leases = tuple(lease for each in by_name.values() for lease in each)
            return cls(leases, read_shares(server_of(place)), place.expiry_s)
        except HFBudgetError as error:
            raise click.ClickException(str(error)) from None

    def json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "leases": [
                {
                    "endpoint": lease.endpoint,
                    "job": lease.run,
                    "run": lease.shared_run,
                    "machine": lease.host,
                    "phase": lease.phase,
                    "live": lease.live,
                    "seconds": lease.age_s,
                }
                for lease in self.leases
            ],
            "advances": [
                {
                    "budget": share.budget,
                    "job": share.job,
                    "advanced_usd": usd_text(share.advanced),
                    "spent_usd": usd_text(share.spent),
                    "live": share.age_s <= self.expiry_s,
                    "seconds": share.age_s,
                }
                for share in self.shares
            ],
        }

    def table(self) -> RenderableType:
        """For people."""
        from rich.console import Group

        if not self.leases and not self.shares:
            return "no job shares anything over this server."
        leases = (
            (
                *map(printable, (one.endpoint, one.run, one.shared_run, one.host, one.phase)),
                self._heard(one.age_s),
            )
            for one in self.leases
        )
        shares = (
            (
                *map(printable, (one.budget, one.job)),
                *beside(None, one.advanced, one.spent),
                self._heard(one.age_s),
            )
            for one in self.shares
        )
        tables = []
        if self.leases:
            tables.append(output.table(*_LEASES, rows=leases, styles=[""] * len(self.leases)))
        if self.shares:
            tables.append(output.table(*_SHARES, rows=shares, styles=[""] * len(self.shares)))
        return Group(*tables)

    def _heard(self, age_s: float) -> str:
        lost = ", lost" if age_s > self.expiry_s else ""
        return f"{age_s:.0f} s ago{lost}"
