"""A process that a test has forked: it may spend, but the run is its parent's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_hfbudget.errors import EndpointError, HFBudgetError
from pytest_hfbudget.plugin.follower import Follower
from pytest_hfbudget.settings import Settings

if TYPE_CHECKING:
    from pytest_hfbudget.ledger import Scope
    from pytest_hfbudget.metering.runtime import Runtime


class Bystander(Follower):
    """Ends nothing and reports nothing, even where pytest itself is run to its end in a child."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def make_runtime(self) -> Runtime:
        """One of its own: nothing was capped when it was forked, or it would have had one."""
        from pytest_hfbudget.metering.runtime import standalone

        return standalone()

    def declare(self, names: tuple[str, ...], *, paid: bool) -> None:
        """Done by the parent."""

    def foresee(self) -> None:
        """Done by the parent."""

    def problem(self, error: HFBudgetError) -> None:
        raise error

    def ensure(self, name: str, *, keep_running: bool = False) -> dict[str, Any]:
        raise EndpointError(f"{name}: a forked process can't bring endpoints up.")

    def revive(self, name: str) -> bool:
        return False

    def meet(self) -> None:
        """Known from the parent."""

    def begin_use(self, test: str, name: str, scopes: tuple[Scope, ...]) -> None:
        """The parent is on it, too."""

    def end_use(self, test: str) -> None:
        """The parent goes on."""

    def share(self, test: str) -> int:
        return 0

    def paused(self, name: str) -> str | None:
        return None

    def blame(self, refusals: tuple[str, ...]) -> None:
        """The parent has heard of them where they were refused."""

    def warn(self, text: str) -> None:
        """The parent has its own to say."""

    def first(self, key: str) -> bool:
        return False  # the parent warns

    def use_up(self) -> None:
        """The parent has heard of that, too."""

    def used_up(self) -> bool:
        return False

    def close(self) -> None:
        """Everything belongs to the parent."""
