"""What may be put into another order: which tests need which endpoints, and what stays together."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from pytest_hfbudget.plugin import markers
from pytest_hfbudget.plugin.markers import undecided
from pytest_hfbudget.scheduling import Task
from pytest_hfbudget.settings import Settings
from pytest_hfbudget.values import full_name

if TYPE_CHECKING:
    from _pytest.nodes import Node

    from pytest_hfbudget.reporting.costs import Costs

# Options with which a user asks for an order, or for one that later runs can rely on.
_ORDERS = {"stepwise": "--stepwise", "failedfirst": "--ff", "newfirst": "--nf"}
# Whose loops run each test once; other plugins' loops may run them again and again.
# In a worker of xdist its module has the name that execnet gives it.
_LOOPS = ("_pytest.", "xdist.", "pytest_hfbudget.", "__channelexec__")
_SHARED: tuple[tuple[str, type[Node]], ...] = (
    ("class", pytest.Class),
    ("module", pytest.Module),
    ("package", pytest.Package),
)


class Expected(NamedTuple):
    """The tests of a run, as the process that has collected them sees them.

    Attributes:
        tests: in the order of the collection.
        keep_running: endpoints that stay up if they are found so.
        kept: why this order is kept; empty if tests may be put into another.
        repeats: a plugin may run tests more than once, so nothing is over before the end.
        cold_starts: seconds, by endpoint, as the costs file has them.
    """

    tests: tuple[Task, ...]
    keep_running: tuple[str, ...] = ()
    kept: str = ""
    repeats: bool = False
    cold_starts: Sequence[tuple[str, float]] = ()


def expected(
    items: Sequence[pytest.Item],
    before: Sequence[pytest.Item],
    settings: Settings,
    costs: Costs,
) -> Expected:
    """What the collected tests need.

    Args:
        before: the items before other plugins have seen them.
        costs: what is recorded in the costs file.
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
        tests.append(Task(item.nodeid, needs, together.get(place, -1), certain, seconds))
    return Expected(
        tuple(tests),
        tuple(sorted(keep)),
        _kept(config, items, before, settings),
        config.getoption("dist", "no") == "each" or _repeats(config),
        tuple(costs.cold_starts.items()),
    )


def _skipped(item: pytest.Item) -> bool | None:
    """Whether a marker skips a test; None if that shows only when it is set up."""
    if markers.skipped_by_unittest(item):
        return True
    marks = [mark for mark in item.iter_markers() if mark.name in ("skip", "skipif")]
    if not marks:
        return False
    try:
        from _pytest.skipping import evaluate_skip_marks

        return evaluate_skip_marks(item) is not None
    except (ImportError, Exception, pytest.fail.Exception):  # pytest says it at the set-up
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
    """Why the order of the tests is kept; empty if it need not be."""
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
    """The orders that pytest itself may leave: as collected, or by parameters of fixtures."""
    yield before
    try:
        from _pytest.fixtures import reorder_items
    except ImportError:
        return
    yield reorder_items(list(before))


# --- what stays together


def _together(items: Sequence[pytest.Item]) -> dict[int, int]:
    """The number of its unit for each place whose test shares fixtures with others.

    Fixtures of a class, module or package are torn down when the next test is outside of it, and
    those with parameters when the next test has another one. Tests that share one stay together.
    """
    units = _Units(len(items))
    first: dict[object, int] = {}
    for place, item in enumerate(items):
        for key in _shared(item):
            units.join(first.setdefault(key, place), place)
    return units.numbers()


def _shared(item: pytest.Item) -> Iterator[object]:
    """What a test shares with its neighbours, by keys that are the same for all of them."""
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
        # It may ask for a fixture by name while it runs.
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
    """Whether a fixture is worth keeping tests together.

    Other plugins have some for whole modules that every test uses, and that only return a setting
    (``vcr_config`` of pytest-recording): with them, no module could ever be divided.
    """
    return _of_project(fixture) or inspect.isgeneratorfunction(fixture.func)


def _of_project(fixture: Any) -> bool:
    """Whether a fixture is of a conftest file or a test module, and not of a plugin."""
    return bool(fixture.baseid) or "conftest" in str(getattr(fixture.func, "__module__", ""))


class _Units:
    """Sets of places that grow together."""

    def __init__(self, size: int) -> None:
        self._parents = list(range(size))

    def join(self, one: int, other: int) -> None:
        one, other = self._root(one), self._root(other)
        self._parents[max(one, other)] = min(one, other)

    def numbers(self) -> dict[int, int]:
        """For each place that is not alone in its set, the smallest place in it."""
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
