"""What a process is to its run: `Worker`, `ForkedChild`, or `Controller`.

The controller owns the ledger, the endpoints and the report of the run. It is in `controller`. The
other roles ask the controller, or do nothing.
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
    from pytest_hfbudget.plugin.test_order import Suite
    from pytest_hfbudget.pricing.catalogue import Catalogue

    # Writes the costs file of a session. Arguments: the session, its ledger, the seconds of the
    # cold start of each endpoint, and the token counts of servers.
    StoreCosts = Callable[[pytest.Session, Ledger, Mapping[str, float], Iterable[Fact]], None]

# Name of the plugin (`SerialOrder` or `WorkersOrder`) that is registered if tests need endpoints.
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

    def budgets_over_runs(self) -> tuple[RunsBudget, ...]:
        """The budgets over many runs, each with what is left of it."""
        return ()

    def make_runtime(self) -> Runtime:
        """The meter of this process."""
        raise NotImplementedError

    def declare(self, names: tuple[str, ...], *, paid: bool) -> None:
        """Declare the endpoints that tests need; ``paid``: calls under a cap need prices, too."""

    def note_suite(self, items: list[pytest.Item], suite: Suite) -> None:
        """Take in the collected tests and the endpoints that they need, before the first test."""

    def prefetch_prices(self, expected: bool) -> None:
        """Read prices for the report of a run without caps.

        Args:
            expected: calls are expected; False if they are only possible.
        """

    def abort(self, error: HFBudgetError) -> None:
        """End the run with an error that was found when its tests were planned."""
        raise error

    def raise_planning_error(self) -> None:
        """Raise the first error that a worker found when it planned its tests."""

    def begin(self) -> None:
        """Resume the endpoints that the whole run needs (``--hf-endpoint``)."""

    # --- endpoints

    def ensure(self, name: str, *, keep_running: bool = False) -> dict[str, Any]:
        """Return an endpoint that serves, as the JSON of the API; see `Lifecycle.ensure`."""
        raise NotImplementedError

    def revive(self, name: str) -> bool:
        """Resume an endpoint again that another process has paused; returns whether it serves."""
        return False

    def take_over(self, name: str, form: Mapping[str, Any] | None) -> bool:
        """Have an endpoint paused at the end that the code under test is about to start.

        See `RunLifecycle.take_over`.
        """
        raise NotImplementedError

    def answered(self, name: str, status: int, stops: bool) -> None:
        """Note the answer to a request that starts or pauses an endpoint: `EndpointCallbacks`."""

    def addresses(self) -> Mapping[str, str]:
        """The names of the run's endpoints by their URLs, those that were taken over included."""
        return {}

    def learn_addresses(self) -> None:
        """Learn the URLs of the endpoints that were resumed for the whole run."""

    def begin_use(self, test: str, name: str, scopes: tuple[Scope, ...], worker: str = "") -> None:
        """Charge a share of an endpoint's uptime to these budgets of a test from now on."""

    def end_use(self, test: str) -> None:
        """Charge a test no more uptime, of any endpoint."""

    def share(self, test: str) -> int:
        """Nano-USD of uptime that were charged to a test's budgets so far."""
        return 0

    def paused(self, name: str) -> str | None:
        """Why an endpoint was paused before the run's end; None if it was not."""
        return None

    def between_tests(self) -> None:
        """Look after the reaper, between two tests."""

    def request_pause(self) -> None:
        """Ask the reaper to pause all endpoints, without waiting."""

    # --- what is said and noted

    def note_unowned(self, refusals: tuple[str, ...]) -> None:
        """Fail the run for refusals that belong to no test."""

    def warn(self, text: str) -> None:
        """Print a line in the terminal of the controller."""

    def claim(self, key: str) -> bool:
        """Whether this is the first call with this key, in any process of the run."""
        return False

    def use_up(self) -> None:
        """Note that the session budget has refused a call."""

    def used_up(self) -> bool:
        """Whether the session budget has refused a call to any test of the run."""
        return False

    def announce(self) -> None:
        """Call other plugins' hooks for what is new: charges, refusals, endpoint events."""

    # --- the end

    def finish(self, outcomes: Outcomes) -> bool:
        """Wait for the pauses and write the report.

        Returns whether every pause is verified, and no refusal was outside of all tests.
        """
        return True

    def record(self, store: StoreCosts, session: pytest.Session) -> None:
        """Write the costs file, if ``--hf-store-costs`` was given."""

    def summarise(self, terminal: Any, outcomes: Outcomes) -> None:
        """Write the section of the terminal's summary."""

    def last_words(self) -> None:
        """Print why the run failed and which endpoints still cost, after all other plugins."""

    def finish_late(self) -> bool:
        """Wait for the pauses of endpoints that were started after the report.

        Returns whether every one is verified.
        """
        return True

    def serve(self) -> dict[str, Any]:
        """What the controller tells a worker: the ledger's socket and the service addresses."""
        raise RuntimeError("only the controller of a run has workers")

    def close(self) -> None:
        """Close connections, and what else this process holds."""


class RunContext(Protocol):
    """The part of `Run` that its helpers use."""

    @property
    def settings(self) -> Settings: ...

    @property
    def role(self) -> Role: ...

    @property
    def runtime(self) -> Runtime | None: ...

    def start(self) -> Runtime:
        """Return the meter of this process; the first call puts it in place."""


class ForkedChild(Role):
    """Ends nothing and reports nothing, even if the child runs pytest to its end.

    The parent goes on and reports. It knows all that happened before the fork.
    """

    def make_runtime(self) -> Runtime:
        """Return a standalone meter: there was no meter at the fork, so no budget was open."""
        from pytest_hfbudget.metering.runtime import standalone

        return standalone()

    def ensure(self, name: str, *, keep_running: bool = False) -> dict[str, Any]:
        raise EndpointError(f"{name}: a forked process can't bring endpoints up.")


class Worker(Role):
    """A worker of xdist, which asks the controller.

    It has two connections: a hold must never wait for an endpoint that takes minutes to start.
    """

    def __init__(
        self, config: pytest.Config, settings: Settings, workerinput: Mapping[str, Any]
    ) -> None:
        from pytest_hfbudget.ledger.rpc import LedgerConnection

        given = workerinput["hfbudget"]
        super().__init__(_with_addresses(settings, given))
        self.config = config
        self.leased: dict[str, str] = {}
        self._learned = False
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
        from pytest_hfbudget.metering.processes import facts_loader, shares
        from pytest_hfbudget.plugin.price_sources import tokenizers

        known = off_loop()(facts_loader(self._connection))
        own = self.settings
        counts = TokenCounts(own.router, known, tokenizers(own), own.image_tokens)
        counts.share = shares(self._connection, self._name)
        return counts

    def _catalogue(self) -> Catalogue:
        from pytest_hfbudget.pricing.catalogue import Catalogue

        read: dict[str, Any] = self._slow_connection.invoke("catalogue")
        return Catalogue.parse(read["models"], read_at=read["read_at"], origin=read["origin"])

    def declare(self, names: tuple[str, ...], *, paid: bool) -> None:
        self._slow_connection.invoke("declare", names, paid)

    def note_suite(self, items: list[pytest.Item], suite: Suite) -> None:
        self._slow_connection.invoke("note_suite", suite)

    def prefetch_prices(self, expected: bool) -> None:
        self._slow_connection.invoke("prefetch_prices", expected)

    def abort(self, error: HFBudgetError) -> None:
        self._slow_connection.invoke("abort", str(error))

    def ensure(self, name: str, *, keep_running: bool = False) -> dict[str, Any]:
        raw: dict[str, Any] = self._slow_connection.invoke("ensure", name, keep_running)
        self.leased[str(raw["status"]["url"])] = name
        return raw

    def revive(self, name: str) -> bool:
        return bool(self._slow_connection.invoke("revive", name))

    def take_over(self, name: str, form: Mapping[str, Any] | None) -> bool:
        return bool(self._slow_connection.invoke("take_over", name, form))

    def answered(self, name: str, status: int, stops: bool) -> None:
        self._slow_connection.invoke("answered", name, status, stops)

    def addresses(self) -> Mapping[str, str]:
        self.leased.update(self._slow_connection.invoke("addresses"))
        return self.leased

    def learn_addresses(self) -> None:
        if not self._learned:
            self.leased.update(self._connection.invoke("leased"))
            self._learned = True

    def begin_use(self, test: str, name: str, scopes: tuple[Scope, ...], worker: str = "") -> None:
        self._connection.invoke("begin_use", test, name, scopes, self._name)

    def end_use(self, test: str) -> None:
        with suppress(LedgerUnreachableError):  # without its controller a worker owes nothing more
            self._connection.invoke("end_use", test, self._name)

    def share(self, test: str) -> int:
        with suppress(LedgerUnreachableError):
            return int(self._connection.invoke("share", test))
        return 0

    def paused(self, name: str) -> str | None:
        answer: str | None = self._slow_connection.invoke("paused", name)
        return answer

    def note_unowned(self, refusals: tuple[str, ...]) -> None:
        self._slow_connection.invoke("note_unowned", refusals)

    def warn(self, text: str) -> None:
        self._slow_connection.invoke("warn", text)

    def claim(self, key: str) -> bool:
        return bool(self._connection.invoke("claim", key))

    def use_up(self) -> None:
        with suppress(LedgerUnreachableError):
            self._connection.invoke("use_up")

    def used_up(self) -> bool:
        with suppress(LedgerUnreachableError):
            return bool(self._connection.invoke("used_up"))
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
