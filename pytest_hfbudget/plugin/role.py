"""What a process of a run is: the owner of ledger and endpoints, or a worker that asks it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from pytest_hfbudget.settings import Settings

if TYPE_CHECKING:
    from pytest_hfbudget.errors import HFBudgetError
    from pytest_hfbudget.ledger import Scope
    from pytest_hfbudget.metering.runtime import Runtime
    from pytest_hfbudget.plugin.recording import Recording


class Role(Protocol):
    """What `Run` leaves to the role of its process."""

    settings: Settings

    def open(self) -> None:
        """Check what can be checked before anything is collected."""

    def standing(self) -> tuple[str, ...]:
        """What is left of the budgets over many runs."""

    def make_runtime(self) -> Runtime:
        """The meter of this process."""

    def declare(self, names: tuple[str, ...], *, paid: bool) -> None:
        """Tell which endpoints will be needed, and whether prices will be."""

    def foresee(self) -> None:
        """Read the prices of calls that are expected, though no cap needs them."""

    def problem(self, error: HFBudgetError) -> None:
        """End the run, because its plan can't be carried out."""

    def planned(self) -> None:
        """Raise the first problem that a worker had."""

    def begin(self) -> None:
        """Bring up what the whole run needs."""

    def ensure(self, name: str, *, keep_running: bool = False) -> dict[str, Any]:
        """An endpoint, serving, as the API's own object; see `Lifecycle.ensure`."""

    def revive(self, name: str) -> bool:
        """Bring an endpoint back that somebody else has paused; whether it is back."""

    def meet(self) -> None:
        """Learn which endpoints are up that the whole run has asked for."""

    def begin_use(self, test: str, name: str, scopes: tuple[Scope, ...]) -> None:
        """Have a test, and these budgets of it, share in an endpoint's uptime from now on."""

    def end_use(self, test: str) -> None:
        """End that for all endpoints."""

    def share(self, test: str) -> int:
        """Nano-USD that a test owes for uptime by now; its budgets have them already."""

    def paused(self, name: str) -> str | None:
        """Why an endpoint was paused before the run's end, if it was."""

    def blame(self, refusals: tuple[str, ...]) -> None:
        """Fail the run for refusals that no test answers for."""

    def warn(self, text: str) -> None:
        """Say a line in the terminal of the whole run."""

    def first(self, key: str) -> bool:
        """Whether nobody in the whole run has asked this before."""

    def use_up(self) -> None:
        """Note that the session budget has refused a call."""

    def used_up(self) -> bool:
        """Whether it has, to any test of the run."""

    def announce(self) -> None:
        """Tell other plugins what is new."""

    def between(self) -> None:
        """Look after the reaper, between two tests."""

    def ask_pause(self) -> None:
        """Have everything paused, without waiting."""

    def finish(self, outcomes: Mapping[str, str]) -> bool:
        """Wait for the pauses and report; whether every pause is verified."""

    def record(self, recording: Recording, session: pytest.Session) -> None:
        """Store what the tests cost, where that was asked for."""

    def summarise(self, terminal: Any, outcomes: Mapping[str, str]) -> None:
        """Write the section of the terminal's summary."""

    def last_words(self) -> None:
        """Say what nobody may overlook, after everybody else has spoken."""

    def serve(self) -> dict[str, Any]:
        """What a worker needs to know."""

    def close(self) -> None:
        """Give back what is left."""


def role_of(config: pytest.Config, settings: Settings) -> Role:
    """The role of the process that this config belongs to."""
    given: dict[str, Any] = getattr(config, "workerinput", {})
    if given:
        from pytest_hfbudget.plugin.worker import Worker

        return Worker(config, settings, given)
    from pytest_hfbudget.plugin.controller import Controller

    return Controller(config, settings)


class NonOwner:
    """The part of `Role` that is the same for all of them: nothing."""

    def open(self) -> None:
        """The owner has checked everything."""

    def standing(self) -> tuple[str, ...]:
        return ()

    def planned(self) -> None:
        """Said by the owner."""

    def begin(self) -> None:
        """Done by the owner."""

    def announce(self) -> None:
        """Hooks are told by the owner."""

    def between(self) -> None:
        """The owner looks after the reaper."""

    def ask_pause(self) -> None:
        """Others may still need what is running."""

    def finish(self, outcomes: Mapping[str, str]) -> bool:
        return True

    def record(self, recording: Recording, session: pytest.Session) -> None:
        """Done by the owner."""

    def summarise(self, terminal: Any, outcomes: Mapping[str, str]) -> None:
        """Shown by the owner."""

    def last_words(self) -> None:
        """Said by the owner."""

    def serve(self) -> dict[str, Any]:
        raise RuntimeError("only the owner of a run has workers")
