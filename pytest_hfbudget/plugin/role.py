"""What a process is to its run: `Worker`, `ForkedChild`, or the controller.

The controller owns what is the run's, and has a module of its own. The others leave that to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from pytest_hfbudget.errors import EndpointError, LedgerUnreachableError
from pytest_hfbudget.settings import Settings

if TYPE_CHECKING:
    from pytest_hfbudget.errors import HFBudgetError
    from pytest_hfbudget.ledger import RunsBudget, Scope
    from pytest_hfbudget.ledger.ledger import Ledger
    from pytest_hfbudget.metering.bounds import TokenCounts
    from pytest_hfbudget.metering.prompts import Fact
    from pytest_hfbudget.metering.runtime import Runtime
    from pytest_hfbudget.plugin.outcomes import Outcomes
    from pytest_hfbudget.plugin.test_order import Expected
    from pytest_hfbudget.pricing.catalogue import Catalogue

    # Writes the costs file of a session from its ledger, from the seconds of its cold starts, and
    # from what servers have counted.
    StoreCosts = Callable[[pytest.Session, Ledger, Mapping[str, float], Iterable[Fact]], None]

# The plugin that is registered where tests need endpoints.
ORDER = "hfbudget-order"


class Role:
    """What `Run` leaves to the role of its process.

    The defaults are those of a process that owns nothing: the controller checks, reports and ends
    the run. The controller, a worker of xdist and a forked process override what differs.
    """

    reports = False  # whether it tells the user how the run ended

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    # --- before the tests

    def open(self) -> None:
        """Check what can be checked before anything is collected."""

    def standing(self) -> tuple[RunsBudget, ...]:
        """What is left of the budgets over many runs."""
        return ()

    def make_runtime(self) -> Runtime:
        """The meter of this process."""
        raise NotImplementedError

    def declare(self, names: tuple[str, ...], *, paid: bool) -> None:
        """Tell which endpoints will be needed, and whether prices will be."""

    def expect(self, items: list[pytest.Item], expected: Expected) -> None:
        """Tell which tests need which endpoints, before the first test."""

    def foresee(self, sure: bool) -> None:
        """Read the prices of calls that no cap needs; expected for ``sure``, or else possible."""

    def problem(self, error: HFBudgetError) -> None:
        """End the run, because its plan can't be carried out."""
        raise error

    def planned(self) -> None:
        """Raise the first problem that a worker had."""

    def begin(self) -> None:
        """Bring up what the whole run needs."""

    # --- endpoints

    def ensure(self, name: str, *, keep_running: bool = False) -> dict[str, Any]:
        """An endpoint, serving, as the API's own object; see `Lifecycle.ensure`."""
        raise NotImplementedError

    def revive(self, name: str) -> bool:
        """Bring back an endpoint that another process has paused; returns whether it is back."""
        return False

    def take_over(self, name: str, form: Mapping[str, Any] | None) -> bool:
        """Have paused what the code under test is about to start; see `RunLifecycle.take_over`."""
        raise NotImplementedError

    def answered(self, name: str, status: int, stops: bool) -> None:
        """Tell how a request to start or pause it was answered; see `EndpointHooks`."""

    def addresses(self) -> Mapping[str, str]:
        """The URLs of the run's endpoints, with their names; of what was taken over, too."""
        return {}

    def meet(self) -> None:
        """Learn which endpoints are up that the whole run has asked for."""

    def begin_use(self, test: str, name: str, scopes: tuple[Scope, ...], worker: str = "") -> None:
        """Have a test, and these budgets of it, share in an endpoint's uptime from now on."""

    def end_use(self, test: str) -> None:
        """End that for all endpoints."""

    def share(self, test: str) -> int:
        """Nano-USD that a test owes for uptime by now; its budgets have them already."""
        return 0

    def paused(self, name: str) -> str | None:
        """Why an endpoint was paused before the run's end, if it was."""
        return None

    def between(self) -> None:
        """Look after the reaper, between two tests."""

    def ask_pause(self) -> None:
        """Have everything paused, without waiting."""

    # --- what is said and noted

    def blame(self, refusals: tuple[str, ...]) -> None:
        """Fail the run for refusals that no test answers for."""

    def warn(self, text: str) -> None:
        """Say a line in the terminal of the whole run."""

    def first(self, key: str) -> bool:
        """Return True to the first caller of the whole run that asks for this key."""
        return False

    def use_up(self) -> None:
        """Note that the session budget has refused a call."""

    def used_up(self) -> bool:
        """Whether the session budget has refused a call to any test of the run."""
        return False

    def announce(self) -> None:
        """Tell other plugins what is new."""

    # --- the end

    def finish(self, outcomes: Outcomes) -> bool:
        """Wait for the pauses and report; returns whether every pause is verified."""
        return True

    def record(self, store: StoreCosts, session: pytest.Session) -> None:
        """Store what the tests cost, where that was asked for."""

    def summarise(self, terminal: Any, outcomes: Outcomes) -> None:
        """Write the section of the terminal's summary."""

    def last_words(self) -> None:
        """Say what must not be overlooked, after all other plugins have spoken."""

    def serve(self) -> dict[str, Any]:
        """What a worker needs to know."""
        raise RuntimeError("only the controller of a run has workers")

    def close(self) -> None:
        """Give back what is left."""


class RunContext(Protocol):
    """What the parts of a run know of it."""

    @property
    def settings(self) -> Settings: ...

    @property
    def role(self) -> Role: ...

    @property
    def runtime(self) -> Runtime | None: ...

    def start(self) -> Runtime:
        """The meter of this process, put in place by the first caller."""


class ForkedChild(Role):
    """Ends nothing and reports nothing, even where pytest itself is run to its end in a child.

    Its parent goes on, and has been told of all that happened before the fork.
    """

    def make_runtime(self) -> Runtime:
        """One of its own: without a meter at the fork, no budget was open."""
        from pytest_hfbudget.metering.runtime import standalone

        return standalone()

    def ensure(self, name: str, *, keep_running: bool = False) -> dict[str, Any]:
        raise EndpointError(f"{name}: a forked process can't bring endpoints up.")


class Worker(Role):
    """Two connections: a hold must never wait behind an endpoint that takes minutes to start."""

    def __init__(
        self, config: pytest.Config, settings: Settings, workerinput: Mapping[str, Any]
    ) -> None:
        from pytest_hfbudget.ledger.rpc import LedgerConnection

        given = workerinput["hfbudget"]
        super().__init__(_with_addresses(settings, given))
        self.config = config
        self.leased: dict[str, str] = {}
        self._met = False
        self._name = str(workerinput["workerid"])
        self._connection, self._slow_connection = (
            LedgerConnection(given["socket"]),
            LedgerConnection(given["socket"]),
        )

    def make_runtime(self) -> Runtime:
        from pytest_hfbudget.ledger.rpc import RemoteLedger
        from pytest_hfbudget.plugin.run_ledger import make_meter

        ledger, counts = RemoteLedger(self._connection, ahead=True), self._counts()
        common = self.config, self.settings, ledger, self.leased
        return make_meter(*common, self._catalogue, counts, worker=self._name)

    def _counts(self) -> TokenCounts:
        from pytest_hfbudget.locks import off_loop
        from pytest_hfbudget.metering.bounds import TokenCounts
        from pytest_hfbudget.metering.processes import known_to, shares
        from pytest_hfbudget.plugin.price_sources import tokenizers

        known = off_loop()(known_to(self._connection))
        own = self.settings
        counts = TokenCounts(own.router, known, tokenizers(own), own.image_tokens)
        counts.share = shares(self._connection, self._name)
        return counts

    def _catalogue(self) -> Catalogue:
        from pytest_hfbudget.pricing.catalogue import Catalogue

        read: dict[str, Any] = self._slow_connection.ask("catalogue")
        return Catalogue.parse(read["models"], read_at=read["read_at"], origin=read["origin"])

    def declare(self, names: tuple[str, ...], *, paid: bool) -> None:
        self._slow_connection.ask("declare", names, paid)

    def expect(self, items: list[pytest.Item], expected: Expected) -> None:
        self._slow_connection.ask("expect", expected)

    def foresee(self, sure: bool) -> None:
        self._slow_connection.ask("foresee", sure)

    def problem(self, error: HFBudgetError) -> None:
        self._slow_connection.ask("problem", str(error))

    def ensure(self, name: str, *, keep_running: bool = False) -> dict[str, Any]:
        raw: dict[str, Any] = self._slow_connection.ask("ensure", name, keep_running)
        self.leased[str(raw["status"]["url"])] = name
        return raw

    def revive(self, name: str) -> bool:
        return bool(self._slow_connection.ask("revive", name))

    def take_over(self, name: str, form: Mapping[str, Any] | None) -> bool:
        return bool(self._slow_connection.ask("take_over", name, form))

    def answered(self, name: str, status: int, stops: bool) -> None:
        self._slow_connection.ask("answered", name, status, stops)

    def addresses(self) -> Mapping[str, str]:
        self.leased.update(self._slow_connection.ask("addresses"))
        return self.leased

    def meet(self) -> None:
        if not self._met:
            self.leased.update(self._connection.ask("leased"))
            self._met = True

    def begin_use(self, test: str, name: str, scopes: tuple[Scope, ...], worker: str = "") -> None:
        self._connection.ask("begin_use", test, name, scopes, self._name)

    def end_use(self, test: str) -> None:
        with suppress(LedgerUnreachableError):  # whose controller is gone, owes nothing more
            self._connection.ask("end_use", test, self._name)

    def share(self, test: str) -> int:
        with suppress(LedgerUnreachableError):
            return int(self._connection.ask("share", test))
        return 0

    def paused(self, name: str) -> str | None:
        answer: str | None = self._slow_connection.ask("paused", name)
        return answer

    def blame(self, refusals: tuple[str, ...]) -> None:
        self._slow_connection.ask("blame", refusals)

    def warn(self, text: str) -> None:
        self._slow_connection.ask("warn", text)

    def first(self, key: str) -> bool:
        return bool(self._connection.ask("first", key))

    def use_up(self) -> None:
        with suppress(LedgerUnreachableError):
            self._connection.ask("use_up")

    def used_up(self) -> bool:
        with suppress(LedgerUnreachableError):
            return bool(self._connection.ask("used_up"))
        return True  # without its controller a worker spends nothing more

    def close(self) -> None:
        self._connection.close()
        self._slow_connection.close()


def _with_addresses(settings: Settings, given: Mapping[str, Any]) -> Settings:
    """Settings of a worker, with the addresses and the session id of its controller."""
    return settings.replaced(
        router=given["router"],
        endpoints_api=given["endpoints_api"],
        hub=given["hub"] or None,
        session_id=given["session_id"],
        emulator=given["emulator"] or None,
    )
