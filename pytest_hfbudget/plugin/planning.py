"""Computes what the selected tests are expected to cost, for ``--hf-plan`` and its gate."""

from __future__ import annotations

import math
import sys
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from pytest_hfbudget.endpoints import RUNNING
from pytest_hfbudget.errors import ConfigError, HFBudgetError
from pytest_hfbudget.plugin import markers, run_history, test_order
from pytest_hfbudget.plugin.console import amounts, can_show, columns, say
from pytest_hfbudget.reporting.costs import Costs
from pytest_hfbudget.reporting.plan import (
    Plan,
    PlannedBlock,
    PlannedEndpoint,
    PlannedOrder,
    PlannedSpan,
    PlannedTest,
    excess,
    lines,
)
from pytest_hfbudget.reporting.timeline import arranged_spans, collected_spans
from pytest_hfbudget.scheduling import arrange
from pytest_hfbudget.settings import Settings
from pytest_hfbudget.values import full_name

if TYPE_CHECKING:
    from pytest_hfbudget.endpoints import Endpoint
    from pytest_hfbudget.plugin.role import Role
    from pytest_hfbudget.plugin.test_order import Suite

# Seconds for one request to the control plane: a plan must not keep a run waiting.
ASK_S = 5.0


def plan(items: Iterable[pytest.Item], settings: Settings, costs: Costs) -> Plan:
    """What these tests are expected to cost. Only reads, and only from the control plane.

    Raises:
        ConfigError: a marker that makes no sense.
    """
    run = [item for item in items if not item.get_closest_marker("skip")]
    tests = tuple(_test(item, settings, costs) for item in run)
    needed: dict[str, list[PlannedTest]] = defaultdict(list)
    keep: set[str] = set()
    for item, test in zip(run, tests, strict=True):
        for name, keep_running in _endpoints(item, settings, test).items():
            needed[name].append(test)
            keep.update((name,) if keep_running else ())
    return Plan(tests, tuple(_planned(needed, keep, settings, costs)), settings.session_cap)


def present(
    session: pytest.Session,
    collected: Sequence[pytest.Item],
    settings: Settings,
    costs: Costs,
) -> bool | None:
    """Write the plan to the terminal.

    Returns True, so that pytest runs no test; None if the collection failed, so that pytest says
    so.

    Args:
        collected: the items before other plugins have deselected or sorted them.

    Raises:
        ConfigError: as `plan`.
    """
    config = session.config
    if session.testsfailed and not config.getoption("continue_on_collection_errors"):
        return None
    planned = plan(session.items, settings, costs)
    if planned.endpoints:
        suite = test_order.suite_of(session.items, collected, settings, costs)
        planned = replace(planned, order=order(config, suite, planned, settings))
    terminal: Any = config.pluginmanager.get_plugin("terminalreporter")
    if terminal is not None:
        terminal.section("hf budget: plan")
    block_characters = can_show("█░", sys.stdout.encoding)
    for line in lines(
        planned, block_characters=block_characters, width=columns(config), usd=amounts(config)
    ):
        say(config, line.text, **({line.colour: True} if line.colour else {}))
    return True


def order(
    config: pytest.Config, suite: Suite, plan: Plan, settings: Settings
) -> PlannedOrder | None:
    """The order in which the tests would run in one process; None if none needs an endpoint."""
    known = run_history.durations(config, settings)
    tests = [test._replace(seconds=known.tests.get(test.id, test.seconds)) for test in suite.tests]
    arrangement = arrange(
        tests, {each.name: float(each.atto_per_hour or 1) for each in plan.endpoints}
    )
    if not arrangement.blocks:
        return None
    cold = {
        each.name: known.cold_starts.get(each.name, each.cold_start_s) if each.cold_start_s else 0.0
        for each in plan.endpoints
    }
    blocks = [(tuple(sorted(block.needs)), block.units) for block in arrangement.blocks]
    if arrangement.free:
        blocks.append(((), arrangement.free))
    now, before = arranged_spans(tests, arrangement, cold, 1), collected_spans(tests, cold, 1)
    return PlannedOrder(
        suite.kept,
        tuple(
            PlannedBlock(
                names,
                sum(len(unit.tests) for unit in units),
                sum(tests[place].seconds or 0.0 for unit in units for place in unit.tests),
            )
            for names, units in blocks
        ),
        tuple(
            PlannedSpan(
                each, now[each.name].start, now[each.name].seconds, before[each.name].seconds
            )
            for each in plan.endpoints
            if each.name in now and not each.kept
        ),
    )


def gate(items: list[pytest.Item], settings: Settings, costs: Costs, role: Role) -> None:
    """Compare the plan with the session budget, once in a run, if costs were recorded before.

    Raises:
        ConfigError: the plan is over the budget, and ``--hf-plan-gate=stop``.
    """
    if settings.session_cap is None or settings.plan_gate == "off":
        return
    if not costs.tests or not role.claim("plan gate"):
        return
    if (said := excess(plan(items, settings, costs))) is None:
        return
    if settings.plan_gate == "stop":
        raise ConfigError(f"{said} Nothing was started (--hf-plan-gate=stop).")
    role.warn(f"hfbudget: {said}")


def _test(item: pytest.Item, settings: Settings, costs: Costs) -> PlannedTest:
    scopes = reversed(markers.running_test(item, settings).scopes)
    cap = next((scope for scope in scopes if scope.cap is not None), None)
    return PlannedTest(item.nodeid, costs.tests.get(item.nodeid), cap)


def _endpoints(item: pytest.Item, settings: Settings, test: PlannedTest) -> dict[str, bool]:
    names = markers.endpoints(item, settings)
    if test.cost is not None and test.cost.endpoint_s:
        for name in settings.endpoints:
            names.setdefault(full_name(name, settings.namespace), False)
    return names


def _planned(
    needed: Mapping[str, list[PlannedTest]],
    keep: Collection[str],
    settings: Settings,
    costs: Costs,
) -> Iterable[PlannedEndpoint]:
    whole_run = (full_name(name, settings.namespace) for name in settings.endpoints)
    names = tuple(dict.fromkeys((*whole_run, *needed)))
    if not names:
        return
    found = _look(names, settings)
    for name in names:
        endpoint, price = found.get(name, (None, None))
        tests = needed.get(name, [])
        yield PlannedEndpoint(
            name,
            *_cold_start(name, endpoint, settings, costs),
            tests_s=sum(test.cost.endpoint_s for test in tests if test.cost is not None),
            unrecorded=sum(test.cost is None for test in tests),
            atto_per_hour=price,
            billing_minute_s=settings.billing_minute,
            kept=name in keep and endpoint is not None and endpoint.state == RUNNING,
        )


def _cold_start(
    name: str, endpoint: Endpoint | None, settings: Settings, costs: Costs
) -> tuple[int, str]:
    if endpoint is not None and endpoint.state == RUNNING:
        return 0, "running"
    if name in costs.cold_starts:
        return costs.cold_starts[name], "recorded"
    return math.ceil(settings.cold_start), "assumed"


def _look(
    names: Iterable[str], settings: Settings
) -> dict[str, tuple[Endpoint | None, int | None]]:
    """For each endpoint its state, and atto-USD per hour of all its replicas; None if unknown.

    Endpoints that the control plane can't be asked about are left out.
    """
    from huggingface_hub import get_token

    from pytest_hfbudget.endpoints.api import ControlPlane
    from pytest_hfbudget.endpoints.retry import RetryPolicy
    from pytest_hfbudget.endpoints.uptime_meter import price_per_hour

    found: dict[str, tuple[Endpoint | None, int | None]] = {}
    token = get_token()
    if not token:
        return found
    plane = ControlPlane(settings.endpoints_api, token, retry=RetryPolicy(try_s=ASK_S, total_s=0.0))
    try:
        hardware = plane.hardware()
        for name in names:
            endpoint = plane.get(name)
            price = price_per_hour(hardware, endpoint)
            replicas = max(endpoint.scaling.min_replica, endpoint.target_replica, 1)
            found[name] = endpoint, None if price is None else price * replicas
    except HFBudgetError:
        return found  # the plan says which prices it does not know
    return found
