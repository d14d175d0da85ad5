"""Reads from the collected tests which endpoints they need, and which tests stay together.

It also finds out whether the tests may be sorted at all.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from pytest_hfbudget.plugin import markers
from pytest_hfbudget.plugin.markers import undecided
from pytest_hfbudget.scheduling import CollectedTest
from pytest_hfbudget.settings import Settings
from pytest_hfbudget.values import full_name

if TYPE_CHECKING:
    from _pytest.nodes import Node

    from pytest_hfbudget.reporting.costs import Costs

# Options with which pytest itself orders the tests, or relies on the order of the last run.
_ORDERS = {"stepwise": "--stepwise", "failedfirst": "--ff", "newfirst": "--nf"}
# Modules whose `pytest_runtestloop` runs each test once; another plugin's loop may repeat tests.
# `__channelexec__` is the name that execnet gives to xdist's module in a worker.
_LOOPS = ("_pytest.", "xdist.", "pytest_hfbudget.", "__channelexec__")
_SHARED: tuple[tuple[str, type[Node]], ...] = (
    ("class", pytest.Class),
    ("module", pytest.Module),
    ("package", pytest.Package),
)


class Suite(NamedTuple):
    """The collected tests of a run, and what decides their order.

    Attributes:
        tests: in the order of the collection.
        keep_running: endpoints that are not paused at the end if they ran before.
        kept: why the tests stay in this order; empty if they may be sorted.
        repeats: a plugin may run tests again, so no endpoint can be paused before the end.
        cold_starts: each endpoint with the seconds of its cold start in the costs file.
    """

    tests: tuple[CollectedTest, ...]
    keep_running: tuple[str, ...] = ()
    kept: str = ""
    repeats: bool = False
    cold_starts: Sequence[tuple[str, float]] = ()


def suite_of(
    items: Sequence[pytest.Item],
    before: Sequence[pytest.Item],
    settings: Settings,
    costs: Costs,
) -> Suite:
    """Read the collected tests.

    Args:
        before: the items before other plugins have deselected or sorted them.
        costs: the contents of the costs file.
    """
    config = items[0].config
    whole_run = {full_name(name, settings.namespace) for name in settings.endpoints}
    together = _together(items)
    keep: set[str] = set()
    tests = []
    for place, item in enumerate(items):
        named = markers.endpoints(item, settings) if "hf_endpoint" in item.keywords else {}
        skipped = _skipped(item) if named else False
        keep.update(name for name, kept in named.items() if kept)
        needs = () if skipped else tuple(name for name in named if name not in whole_run)
        certain = skipped is False and not undecided(item)
        cost = costs.tests.get(item.nodeid)
        seconds = cost.endpoint_s if cost is not None and cost.endpoint_s else None
        tests.append(CollectedTest(item.nodeid, needs, together.get(place, -1), certain, seconds))
    return Suite(
        tuple(tests),
        tuple(sorted(keep)),
        _kept(config, items, before, settings),
        config.getoption("dist", "no") == "each" or _repeats(config),
        tuple(costs.cold_starts.items()),
    )


def _skipped(item: pytest.Item) -> bool | None:
    """Whether a marker skips a test; None if only its set-up can tell."""
    if markers.skipped_by_unittest(item):
        return True
    marks = [mark for mark in item.iter_markers() if mark.name in ("skip", "skipif")]
    if not marks:
        return False
    try:
        from _pytest.skipping import evaluate_skip_marks

        return evaluate_skip_marks(item) is not None
    except (ImportError, Exception, pytest.fail.Exception):  # pytest reports it in the set-up
        return None


def _repeats(config: pytest.Config) -> bool:
    loops = config.hook.pytest_runtestloop.get_hookimpls()
    return any(
        not (impl.hookwrapper or impl.wrapper)
        and not str(getattr(impl.function, "__module__", "")).startswith(_LOOPS)
        for impl in loops
    )


def _kept(
    config: pytest.Config,
    items: Sequence[pytest.Item],
    before: Sequence[pytest.Item],
    settings: Settings,
) -> str:
    """Why the tests stay in the order they have; empty if they may be sorted."""
    if settings.order == "collected":
        return "hf_order=collected"
    for option, name in _ORDERS.items():
        if config.getoption(option, False):
            return name
    if _repeats(config):
        return "another plugin runs the tests"
    selected = set(map(id, items))
    if list(map(id, items)) in (
        [id(item) for item in order if id(item) in selected] for order in _usual(before)
    ):
        return ""
    return "another plugin has sorted the tests"


def _usual(before: Sequence[pytest.Item]) -> Iterator[Iterable[pytest.Item]]:
    """The orders that pytest itself produces: as collected, or grouped by fixture parameters."""
    yield before
    try:
        from _pytest.fixtures import reorder_items
    except ImportError:
        return
    yield reorder_items(list(before))


# --- what stays together


def _together(items: Sequence[pytest.Item]) -> dict[int, int]:
    """The unit number of each test that shares fixtures with other tests, by index.

    pytest tears a fixture of a class, module or package down when the next test is outside of it,
    and a fixture with parameters when the next test has another parameter. So tests that share such
    a fixture stay together.
    """
    units = _Units(len(items))
    first: dict[object, int] = {}
    for place, item in enumerate(items):
        for key in _shared(item):
            units.join(first.setdefault(key, place), place)
    return units.numbers()


def _shared(item: pytest.Item) -> Iterator[object]:
    """Keys of the fixtures that a test shares; two tests that share a fixture have its key."""
    info: Any = getattr(item, "_fixtureinfo", None)
    fixtures = info.name2fixturedefs if info is not None else {}
    asks = "request" in fixtures or "request" in getattr(item, "fixturenames", ())
    for scope, kind in _SHARED:
        node = item.getparent(kind)
        if node is None:
            continue
        for name, found in fixtures.items():
            if any(fixture.scope == scope and _matters(fixture) for fixture in found):
                yield id(node), name
        # The test may ask its `request` for a fixture while it runs.
        if asks and _has_shared(item, scope, node):
            yield id(node), scope
    callspec: Any = getattr(item, "callspec", None)
    if callspec is not None:
        for name, number in callspec.indices.items():
            scope = getattr(callspec._arg2scope.get(name), "value", "function")
            if scope != "function":
                owners = dict(_SHARED)
                owner: Node | None = item.session
                if scope in owners:
                    owner = item.getparent(owners[scope])
                yield id(owner), name, number


def _has_shared(item: pytest.Item, scope: str, node: Node) -> bool:
    """Whether there are fixtures of this scope that a test below a node could ask for."""
    manager: Any = getattr(item.session, "_fixturemanager", None)
    defined: dict[str, Collection[Any]] = getattr(manager, "_arg2fixturedefs", {})
    return any(
        fixture.scope == scope and node.nodeid.startswith(fixture.baseid) and _of_project(fixture)
        for found in defined.values()
        for fixture in found
    )


def _matters(fixture: Any) -> bool:
    """Whether tests that share a fixture should stay together for it.

    Not for a plugin's fixture that only returns a setting, as ``vcr_config`` of pytest-recording:
    each test of a module uses it, so the module could never be divided.
    """
    return _of_project(fixture) or inspect.isgeneratorfunction(fixture.func)


def _of_project(fixture: Any) -> bool:
    """Whether a fixture is of a conftest file or a test module, and not of a plugin."""
    return bool(fixture.baseid) or "conftest" in str(getattr(fixture.func, "__module__", ""))


class _Units:
    """Disjoint sets of test indices (union-find)."""

    def __init__(self, size: int) -> None:
        self._parents = list(range(size))

    def join(self, one: int, other: int) -> None:
        one, other = self._root(one), self._root(other)
        self._parents[max(one, other)] = min(one, other)

    def numbers(self) -> dict[int, int]:
        """For each index in a set of several: the smallest index of that set."""
        roots = [self._root(place) for place in range(len(self._parents))]
        sizes: dict[int, int] = {}
        for root in roots:
            sizes[root] = sizes.get(root, 0) + 1
        return {place: root for place, root in enumerate(roots) if sizes[root] > 1}

    def _root(self, place: int) -> int:
        while self._parents[place] != place:
            self._parents[place] = self._parents[self._parents[place]]
            place = self._parents[place]
        return place
