"""The endpoints that the running test is on, as its own process knows them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_hfbudget.money import show

if TYPE_CHECKING:
    from pytest_hfbudget.ledger import LedgerLike
    from pytest_hfbudget.metering.payer import RunningTest
    from pytest_hfbudget.plugin.role import Role


class Occupancy:
    """Tells the owner of the endpoints when a test begins to use one, and when it is over."""

    def __init__(self) -> None:
        self._test: RunningTest | None = None
        self._names: set[str] = set()
        self._said = False

    def begin(self, role: Role, test: RunningTest | None, name: str) -> None:
        """The test is on this endpoint from now on; what belongs to no test is idle time."""
        if test is None or name in self._names:
            return
        self._test = test
        self._names.add(name)
        role.begin_use(test.id, name, test.scopes)

    def end(self, role: Role) -> None:
        """The test is over."""
        if self._test is not None:
            role.end_use(self._test.id)
        self._test, self._said = None, False
        self._names.clear()

    def share(self, role: Role) -> int:
        """Nano-USD that the test owes by now for its time on endpoints."""
        return role.share(self._test.id) if self._test is not None else 0

    def beyond(self, role: Role, ledger: LedgerLike) -> str | None:
        """Which budget of the test its calls and its share are too much for; said once."""
        if self._test is None or self._said or all(s.cap is None for s in self._test.scopes):
            return None
        share = self.share(role)
        for scope in reversed(self._test.scopes):
            spent = ledger.total(scope.key).spent
            if share and scope.cap is not None and spent > scope.cap:
                self._said = True
                return (
                    f"{scope.name}: {show(spent)} of {show(scope.cap)} is spent; of that "
                    f"{show(share)} is this test's share of the uptime of "
                    f"{', '.join(sorted(self._names))}. Raise the cap, or have the test be on the "
                    "endpoint for a shorter time."
                )
        return None
