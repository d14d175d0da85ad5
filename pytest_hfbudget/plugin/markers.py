"""Reads the markers of a test: its budgets, its prices, its endpoints, its cassette.

The endpoints of a test that only replays are not resumed. pytest-recording replays tests that are
marked ``vcr``, unless a record mode says otherwise, and it can block the network. What it does with
a test depends on fixtures. So we ask those fixtures just before pytest-recording's own fixtures are
set up. Later would be too late: the cassette would record the calls that resume an endpoint.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from pytest_hfbudget.errors import ConfigError, EndpointError
from pytest_hfbudget.ledger import Scope
from pytest_hfbudget.metering.budget_args import BudgetArgs, Threshold, budget_args, thresholds
from pytest_hfbudget.metering.budget_context import RunningTest
from pytest_hfbudget.settings import ROUTER, Settings
from pytest_hfbudget.values import full_name

if TYPE_CHECKING:
    from _pytest.nodes import Node
    from huggingface_hub import InferenceEndpoint

    from pytest_hfbudget.pricing import Quote

HUB = "https://huggingface.co"
# The fixtures of pytest-recording that block the network or replay; every test sets both up.
FIXTURES = ("block_network", "vcr")
# Options of vcrpy with which some requests bypass the cassette.
CASSETTE_BYPASSES = ("ignore_hosts", "skip_patchers")
LEVELS: dict[str, type[pytest.Collector]] = {
    "class": pytest.Class,
    "module": pytest.Module,
    "package": pytest.Package,
}


class CheckedMarker(NamedTuple):
    """The checked arguments of one budget marker, and the node that has the marker."""

    checked: BudgetArgs
    node: Node


class MarkerBudgets(NamedTuple):
    """What the budget markers of a test say; the fields are in the order of `RunningTest`."""

    scopes: tuple[Scope, ...]
    explicit: Quote | None
    on_exceed: str
    thresholds: tuple[Threshold, ...]


Marks = list[tuple["Node", pytest.Mark]]
# Cache: the budget markers of a test as last read, and what they say. They are read when the test
# is collected and again before it runs, because a fixture may have added some.
READ = pytest.StashKey[tuple[Marks, MarkerBudgets]]()


def running_test(item: pytest.Item, settings: Settings) -> RunningTest:
    """The budgets that enclose a test, below the session's.

    Raises:
        ConfigError: a marker has invalid arguments.
    """
    marks = list(item.iter_markers_with_node("budget"))
    read = item.stash.get(READ, None)
    if read is None or read[0] != marks:
        read = item.stash[READ] = marks, _marker_budgets(item, marks, settings)
    return RunningTest(item.nodeid, *read[1])


def _marker_budgets(item: pytest.Item, marks: Marks, settings: Settings) -> MarkerBudgets:
    """Combine the budget markers of a test.

    Each marker with a wider scope is a budget that the tests below it share. Markers with
    ``scope="test"`` make one budget: each argument is taken from the closest marker that has it. So
    a marker that only states a price keeps the cap of a marker further out.
    """
    marked = list(_budgets(item, marks))
    own = [mark.checked for mark in marked if mark.checked.scope == "test"]
    shared = [mark for mark in marked if mark.checked.scope != "test"]
    cap = next((args.cap for args in own if args.cap is not None), settings.test_cap)
    # The key is the node id, so reruns of a test and its repetitions share one budget.
    test = Scope(
        f"test:{item.nodeid}",
        next((args.name for args in own if args.name), item.nodeid),
        cap,
        next((args.max_calls for args in own if args.max_calls is not None), None),
    )
    deciding = own or [mark.checked for mark in marked]
    budgets = [(_shared(mark, item), [mark.checked]) for mark in reversed(shared)]
    budgets.append((test, own))
    return MarkerBudgets(
        scopes=tuple(scope for scope, _ in budgets),
        thresholds=tuple(t for scope, args in budgets for t in _thresholds(item, scope, args)),
        explicit=next((mark.checked.explicit for mark in marked if mark.checked.explicit), None),
        on_exceed=next((args.on_exceed for args in deciding if args.on_exceed), "fail"),
    )


def check(items: list[pytest.Item], settings: Settings) -> tuple[str, ...]:
    """Check every marker; returns the endpoints that these tests certainly need.

    Raises:
        ConfigError: one line that names the test and the argument.
    """
    needed: dict[str, bool] = {}
    for item in items:
        if next(item.iter_markers("budget"), None):
            running_test(item, settings)
        names = endpoints(item, settings)
        for name, keep in ({} if names and undecided(item) else names).items():
            if needed.setdefault(name, keep) != keep:
                raise ConfigError(
                    f"{item.nodeid}: {name} can't be kept running for one test and be paused "
                    "for another; give keep_running=True to all of them, or to none."
                )
    return tuple(needed)


def endpoints(item: pytest.Item, settings: Settings) -> dict[str, bool]:
    """The full names of the endpoints that a test's markers name, the closest marker first.

    The value is ``keep_running``: whether an endpoint that ran before is to stay running.

    Raises:
        ConfigError: a marker without names, or with an invalid name.
    """
    names: dict[str, bool] = {}
    for mark in item.iter_markers("hf_endpoint"):
        keep = mark.kwargs.get("keep_running", False)
        known = set(mark.kwargs) <= {"keep_running"} and isinstance(keep, bool)
        if not known or not mark.args or not all(isinstance(name, str) for name in mark.args):
            raise ConfigError(
                f'{item.nodeid}: write @pytest.mark.hf_endpoint("namespace/name"); '
                "add keep_running=True to leave an endpoint running that was running before"
            )
        for name in mark.args:
            names.setdefault(full_name(name, settings.namespace), keep)
    return names


def skipped_by_unittest(item: pytest.Item) -> bool:
    """Whether a decorator of unittest skips a test. pytest itself sees that after the set-up."""
    cls, unittest = getattr(item, "cls", None), sys.modules.get("unittest")
    # The decorator has no effect on a class that is no TestCase.
    owners = [cls] if cls and unittest and issubclass(cls, unittest.TestCase) else []
    marked = getattr(item, "obj", None), *owners
    return any(getattr(one, "__unittest_skip__", False) for one in marked)


def _budgets(item: pytest.Item, marks: Marks) -> Iterator[CheckedMarker]:
    for node, mark in marks:
        try:
            yield CheckedMarker(budget_args(*mark.args, **mark.kwargs), node)
        except (ConfigError, TypeError) as error:
            call = _call(mark)
            text = str(error).replace("budget_args()", "budget()").removeprefix(f"{call}: ")
            raise ConfigError(f"{item.nodeid}: @pytest.mark.{call}: {text}") from None


def _thresholds(item: pytest.Item, scope: Scope, given: list[BudgetArgs]) -> tuple[Threshold, ...]:
    warn_at = next((args.warn_at for args in given if args.warn_at is not None), None)
    fallback = next((args.fallback for args in given if args.fallback is not None), None)
    try:
        return thresholds(scope, warn_at, fallback)
    except ConfigError as error:
        raise ConfigError(f"{item.nodeid}: {error}") from None


def _call(mark: pytest.Mark) -> str:
    arguments = [*map(repr, mark.args), *(f"{k}={v!r}" for k, v in mark.kwargs.items())]
    return f"budget({', '.join(arguments)})"


def _shared(mark: CheckedMarker, item: pytest.Item) -> Scope:
    level = mark.checked.scope
    node = None if level == "session" else item.getparent(LEVELS[level])
    if level != "session" and node is None:
        raise ConfigError(f'{item.nodeid}: budget(scope="{level}"), but it is in no {level}')
    place = node.nodeid if node else "run"
    name = mark.checked.name or f"{level} {place}"
    cap, calls = mark.checked.cap, mark.checked.max_calls
    return Scope(f"{level}:{place}:{name}:{cap}:{calls}", name, cap, calls)


# --- replays


def undecided(item: pytest.Item) -> bool:
    """Whether pytest-recording may replay a test or block its network; fixtures decide later."""
    option = item.config.option
    if getattr(option, "disable_recording", None) is None:
        return False  # it is not installed
    if item.get_closest_marker("vcr") is not None and not option.disable_recording:
        return option.record_mode in (None, "none")
    return _blocked(item)


def decided(fixturedef: pytest.FixtureDef[Any]) -> bool:
    """Whether a fixture is one of pytest-recording's, which now blocks or replays the test."""
    module = getattr(fixturedef.func, "__module__", "")
    return fixturedef.argname in FIXTURES and module.startswith("pytest_recording")


def only_replayed(request: pytest.FixtureRequest) -> bool:
    """Whether no call of a test can leave this process."""
    item = request.node
    marks = list(item.iter_markers("vcr"))
    if item.config.option.disable_recording or not marks:
        return _blocked(item) and not request.getfixturevalue("allowed_hosts")
    vcr = dict(request.getfixturevalue("vcr_config"))
    for mark in reversed(marks):
        vcr.update(mark.kwargs)
    mode = vcr.get("record_mode") or item.config.option.record_mode or "none"
    return mode == "none" and not any(vcr.get(option) for option in CASSETTE_BYPASSES)


def recorded(name: str, request: pytest.FixtureRequest, settings: Settings) -> InferenceEndpoint:
    """A paused endpoint object with the URL that the cassette of a test has recorded.

    Raises:
        EndpointError: the cassette has no such URL, or more than one.
    """
    from huggingface_hub import HfApi, InferenceEndpoint

    cassette = request.getfixturevalue("vcr")
    asked = [str(past.uri) for past in cassette.requests] if cassette is not None else []
    others = (settings.router, settings.endpoints_api, settings.hub or HUB, ROUTER)
    own = [uri for uri in asked if not uri.startswith(others)]
    urls = {uri.partition("/v1/")[0] for uri in own}
    if len(urls) != 1:
        raise EndpointError(
            f"The URL of {name} is not known: this test may not use the network, and its cassette "
            f"has answers of {len(urls)} endpoints instead of 1. Record the cassette with "
            "--record-mode=rewrite, or give InferenceClient the URL yourself."
        )
    namespace, _, short = name.partition("/")
    long_ago = "1970-01-01T00:00:00Z"
    raw = {
        "name": short,
        "type": "authenticated",
        "healthRoute": "/health",
        "model": dict.fromkeys(("repository", "framework", "revision", "task"), ""),
        "status": {
            "state": "paused",
            "url": urls.pop(),
            "createdAt": long_ago,
            "updatedAt": long_ago,
        },
    }
    return InferenceEndpoint.from_raw(raw, namespace=namespace, api=HfApi())


def _blocked(item: pytest.Item) -> bool:
    marked = item.get_closest_marker("block_network") is not None
    return marked or bool(item.config.option.block_network)
