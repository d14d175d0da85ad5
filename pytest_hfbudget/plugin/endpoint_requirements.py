"""The endpoints that the running test needs, from its set-up to its end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pytest

from pytest_hfbudget.errors import HFBudgetError, UnaffordableEndpointError
from pytest_hfbudget.money import beside

if TYPE_CHECKING:
    from huggingface_hub import InferenceEndpoint

    from pytest_hfbudget.ledger import LedgerLike
    from pytest_hfbudget.metering.budget_context import RunningTest
    from pytest_hfbudget.metering.meter import EndpointCallbacks
    from pytest_hfbudget.plugin.role import Role, RunContext


class UseReporter:
    """Tells the controller when the running test begins to use endpoints, and when it ends."""

    def __init__(self) -> None:
        self._test: RunningTest | None = None
        self._names: set[str] = set()
        self._said = False

    def begin(self, role: Role, test: RunningTest | None, name: str) -> None:
        """Note that the test uses this endpoint from now on. Time without a test is idle time."""
        if test is None or name in self._names:
            return
        self._test = test
        self._names.add(name)
        role.begin_use(test.id, name, test.scopes)

    def end(self, role: Role) -> None:
        """Note that the test is over."""
        if self._test is not None:
            role.end_use(self._test.id)
        self._test, self._said = None, False
        self._names.clear()

    def share(self, role: Role) -> int:
        """Nano-USD that the test owes so far for its time on endpoints."""
        return role.share(self._test.id) if self._test is not None else 0

    def beyond(self, role: Role, ledger: LedgerLike) -> str | None:
        """The failure message if uptime took a budget of the test over its cap; None if not.

        Returned once for each test.
        """
        if self._test is None or self._said or all(s.cap is None for s in self._test.scopes):
            return None
        share = self.share(role)
        for scope in reversed(self._test.scopes):
            spent = ledger.total(scope.key).spent
            if share and scope.cap is not None and spent > scope.cap:
                self._said = True
                in_all, of_that, cap = beside(scope.cap, spent, share)
                return (
                    f"{scope.name}: {in_all} of {cap} is spent; of that "
                    f"{of_that} is this test's share of the uptime of "
                    f"{', '.join(sorted(self._names))}. Raise the cap, or have the test be on the "
                    "endpoint for a shorter time."
                )
        return None


class EndpointRequirements:
    """Resumes the endpoints that a test names, unless all of its calls are replayed."""

    def __init__(self, run: RunContext) -> None:
        self._run = run
        self._usage = UseReporter()
        self._undecided: pytest.Item | None = None
        self._only_replayed: pytest.Item | None = None
        self._blocked: list[HFBudgetError] = []

    @property
    def open(self) -> bool:
        """Whether the running test may still turn out to be replayed, and to need no endpoints."""
        return self._undecided is not None

    def bring_up(self, item: pytest.Item) -> None:
        """Bring up the endpoints of a test before its set-up; or later, see `decide`.

        Raises:
            EndpointError: one can't be brought up.
        """
        from pytest_hfbudget.plugin.markers import endpoints, skipped_by_unittest, undecided

        if skipped_by_unittest(item):
            return
        names = endpoints(item, self._run.settings)
        if names and undecided(item):
            self._undecided = item
        else:
            self._ensure(names)

    def decide(self, fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest) -> None:
        """Bring up the endpoints of an undecided test, unless all of its calls are replayed.

        Raises:
            EndpointError: an endpoint can't be brought up.
        """
        if self._undecided is None:
            return
        from pytest_hfbudget.plugin import markers

        if not markers.decided(fixturedef):
            return
        item, self._undecided = self._undecided, None
        if markers.only_replayed(request):
            self._only_replayed = item
            return
        names = markers.endpoints(item, self._run.settings)
        self._run.role.declare(tuple(names), paid=True)
        self._ensure(names)

    def live(self, request: pytest.FixtureRequest) -> dict[str, InferenceEndpoint]:
        """The endpoints of a test as huggingface_hub's objects."""
        from pytest_hfbudget.plugin.markers import endpoints
        from pytest_hfbudget.values import full_name

        settings = self._run.settings
        names = endpoints(request.node, settings)
        for name in settings.endpoints:
            names.setdefault(full_name(name, settings.namespace), False)
        if request.node is not self._only_replayed:
            return {name: self._live(name, keep) for name, keep in names.items()}
        from pytest_hfbudget.plugin.markers import recorded

        return {name: recorded(name, request, settings) for name in names}

    def callbacks(self) -> EndpointCallbacks:
        """What the meter calls when a call goes to an endpoint."""
        from pytest_hfbudget.metering.meter import EndpointCallbacks

        role = self._run.role
        callbacks = EndpointCallbacks(revive=role.revive, using=self.begin_use)
        if self._run.settings.adopt == "off":
            callbacks.take_over = lambda name, form: False
        if self._run.settings.adopt == "pause":
            callbacks.take_over, callbacks.answered = self._take_over, role.answered
            callbacks.find = self._find
        return callbacks

    def _take_over(self, name: str, form: Mapping[str, Any] | None) -> bool:
        ours = self._run.role.take_over(name, form)
        if ours:
            self.begin_use(name)
        return ours

    def _find(self, url: str) -> str | None:
        self._run.role.addresses()
        return self._run.start().meter.book.leased_name(url)

    def begin_use(self, name: str) -> None:
        """Charge the running test its share of an endpoint's uptime from now on."""
        runtime = self._run.runtime
        test = runtime.meter.budgets.test if runtime is not None else None
        self._usage.begin(self._run.role, test, name)

    def share(self) -> int:
        """Nano-USD that the running test owes so far for its time on endpoints."""
        return self._usage.share(self._run.role)

    def beyond(self) -> str | None:
        """The failure message if uptime took a budget of the running test over its cap."""
        runtime = self._run.runtime
        if runtime is None:
            return None
        return self._usage.beyond(self._run.role, runtime.meter.ledger)

    def take_blocked(self) -> list[HFBudgetError]:
        """The errors of endpoints that no budget could pay for, since the last call."""
        blocked, self._blocked = self._blocked, []
        return blocked

    def end(self) -> None:
        """Note that the test is over."""
        self._undecided = self._only_replayed = None
        self._usage.end(self._run.role)

    def _ensure(self, names: dict[str, bool]) -> None:
        try:
            for name, keep_running in names.items():
                self._run.role.ensure(name, keep_running=keep_running)
                self.begin_use(name)
        except UnaffordableEndpointError as error:
            self._blocked.append(error)
            raise

    def _live(self, name: str, keep_running: bool) -> InferenceEndpoint:
        from huggingface_hub import HfApi, InferenceEndpoint

        raw = self._run.role.ensure(name, keep_running=keep_running)
        namespace = name.partition("/")[0]
        runtime = self._run.start()
        self.begin_use(name)
        runtime.meter.book.leased[str(raw["status"]["url"])] = name
        return InferenceEndpoint.from_raw(raw, namespace=namespace, api=HfApi())
