"""Processes that do not own the run: a worker of xdist, and a process that a test has forked."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from pytest_hfbudget.errors import EndpointError, HFBudgetError, LedgerUnreachableError
from pytest_hfbudget.ledger.locks import off_loop
from pytest_hfbudget.ledger.rpc.client import LedgerConnection, RemoteLedger
from pytest_hfbudget.plugin.role import Role
from pytest_hfbudget.settings import Settings

if TYPE_CHECKING:
    from pytest_hfbudget.errors import HFBudgetError
    from pytest_hfbudget.ledger import Scope
    from pytest_hfbudget.metering.bounds import TokenCounts
    from pytest_hfbudget.metering.runtime import Runtime
    from pytest_hfbudget.plugin.test_order import Expected
    from pytest_hfbudget.pricing import Catalogue


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
        given = workerinput["hfbudget"]
        super().__init__(_with_addresses(settings, given))
        self.config = config
        self.leased: dict[str, str] = {}
        self._met = False
        self._name = str(workerinput["workerid"])
        self._wire, self._slow_wire = (
            LedgerConnection(given["socket"]),
            LedgerConnection(given["socket"]),
        )

    def make_runtime(self) -> Runtime:
        from pytest_hfbudget.plugin.factory import make_meter

        ledger, counts = RemoteLedger(self._wire, ahead=True), self._counts()
        make = partial(make_meter, self.config, self.settings, ledger, self.leased)
        return make(self._catalogue, counts, worker=self._name)

    def _counts(self) -> TokenCounts:
        from pytest_hfbudget.metering.bounds import TokenCounts
        from pytest_hfbudget.metering.processes import known_to, shares
        from pytest_hfbudget.plugin.tokenizers import tokenizers

        known = off_loop()(known_to(self._wire))
        counts = TokenCounts(self.settings.router, known, tokenizers(self.settings))
        counts.share = shares(self._wire, self._name)
        return counts

    def _catalogue(self) -> Catalogue:
        from pytest_hfbudget.pricing.catalogue import Catalogue

        read: dict[str, Any] = self._slow_wire.ask("catalogue")
        return Catalogue.parse(read["models"], read_at=read["read_at"], origin=read["origin"])

    def declare(self, names: tuple[str, ...], *, paid: bool) -> None:
        self._slow_wire.ask("declare", names, paid)

    def expect(self, items: list[pytest.Item], expected: Expected) -> None:
        self._slow_wire.ask("expect", expected)

    def foresee(self) -> None:
        self._slow_wire.ask("foresee")

    def problem(self, error: HFBudgetError) -> None:
        self._slow_wire.ask("problem", str(error))

    def ensure(self, name: str, *, keep_running: bool = False) -> dict[str, Any]:
        raw: dict[str, Any] = self._slow_wire.ask("ensure", name, keep_running)
        self.leased[str(raw["status"]["url"])] = name
        return raw

    def revive(self, name: str) -> bool:
        return bool(self._slow_wire.ask("revive", name))

    def meet(self) -> None:
        if not self._met:
            self.leased.update(self._wire.ask("leased"))
            self._met = True

    def begin_use(self, test: str, name: str, scopes: tuple[Scope, ...]) -> None:
        self._wire.ask("begin_use", test, name, scopes, self._name)

    def end_use(self, test: str) -> None:
        with suppress(LedgerUnreachableError):  # whose controller is gone, owes nothing more
            self._wire.ask("end_use", test, self._name)

    def share(self, test: str) -> int:
        with suppress(LedgerUnreachableError):
            return int(self._wire.ask("share", test))
        return 0

    def paused(self, name: str) -> str | None:
        answer: str | None = self._slow_wire.ask("paused", name)
        return answer

    def blame(self, refusals: tuple[str, ...]) -> None:
        self._slow_wire.ask("blame", refusals)

    def warn(self, text: str) -> None:
        self._slow_wire.ask("warn", text)

    def first(self, key: str) -> bool:
        return bool(self._wire.ask("first", key))

    def use_up(self) -> None:
        with suppress(LedgerUnreachableError):
            self._wire.ask("use_up")

    def used_up(self) -> bool:
        with suppress(LedgerUnreachableError):
            return bool(self._wire.ask("used_up"))
        return True  # without its controller a worker spends nothing more

    def close(self) -> None:
        self._wire.close()
        self._slow_wire.close()


def _with_addresses(settings: Settings, given: Mapping[str, Any]) -> Settings:
    """Settings of a worker, with the addresses and the session id of its controller."""
    return settings.replaced(
        router=given["router"],
        endpoints_api=given["endpoints_api"],
        hub=given["hub"] or None,
        session_id=given["session_id"],
        emulator=given["emulator"] or None,
    )
