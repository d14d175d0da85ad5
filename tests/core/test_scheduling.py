"""The order of tests, as plain data: what stays together, and which test comes next."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from pytest_hfbudget.reporting.timeline import arranged_spans, collected_spans, least_seconds
from pytest_hfbudget.scheduling import Arrangement, Block, CollectedTest, Pool, arrange, order


def names(arrangement: Arrangement) -> list[str]:
    return ["+".join(sorted(block.needs)) for block in arrangement.blocks]


def test_tests_of_one_endpoint_are_one_block_and_the_others_are_free() -> None:
    tests = [
        CollectedTest("1", ("a",)),
        CollectedTest("2"),
        CollectedTest("3", ("b",)),
        CollectedTest("4", ("a",)),
    ]
    found = arrange(tests, {})
    assert names(found) == ["a", "b"]
    assert [unit.tests for unit in found.blocks[0].units] == [(0,), (3,)]
    assert [unit.tests for unit in found.free] == [(1,)]


def test_what_shares_an_endpoint_stays_adjacent() -> None:
    tests = [CollectedTest("1", ("a",)), CollectedTest("2", ("b",)), CollectedTest("3", ("a", "b"))]
    assert names(arrange(tests, {})) == ["a", "a+b", "b"]


def test_tests_that_share_fixtures_are_one_unit_with_the_needs_of_all() -> None:
    tests = [
        CollectedTest("1", ("a",), unit=0),
        CollectedTest("2"),
        CollectedTest("3", ("b",), unit=0),
    ]
    (block,) = arrange(tests, {}).blocks
    assert (block.needs, block.units[0].tests) == (frozenset("ab"), (0, 2))


def idle(blocks: tuple[Block, ...], rates: dict[str, float]) -> float:
    """What endpoints cost while tests of others run between their own."""
    cost = 0.0
    for at, block in enumerate(blocks):
        begun = {name for each in blocks[:at] for name in each.needs}
        left = {name for each in blocks[at + 1 :] for name in each.needs}
        cost += block.length * sum(rates[name] for name in (begun & left) - block.needs)
    return cost


@pytest.mark.parametrize("seed", range(40))
def test_no_order_of_the_blocks_is_cheaper(seed: int) -> None:
    dice = random.Random(seed)
    rates = {name: dice.choice([1.0, 4.0]) for name in "abcd"}
    tests = [
        CollectedTest(
            str(n), tuple(dice.sample("abcd", dice.choice([1, 2, 2]))), seconds=dice.random()
        )
        for n in range(6)
    ]
    found = arrange(tests, rates).blocks
    best = min(idle(each, rates) for each in itertools.permutations(found))
    assert idle(found, rates) == pytest.approx(best)


def test_many_endpoints_are_ordered_too() -> None:
    letters = "abcdefghijklmnopqrst"
    tests = [CollectedTest(a + b, (a, b)) for a, b in itertools.pairwise(letters)]
    random.Random(1).shuffle(tests)
    found = arrange(tests, {}).blocks
    assert len(found) == len(tests)
    assert idle(found, dict.fromkeys(letters, 1.0)) < idle(
        tuple(Block(frozenset(test.needs), found[0].units) for test in tests),
        dict.fromkeys(letters, 1.0),
    )


def test_free_tests_run_during_the_first_cold_start_as_far_as_they_fit() -> None:
    tests = [
        CollectedTest("long", seconds=30.0),
        CollectedTest("a", ("a",), seconds=1.0),
        CollectedTest("short", seconds=4.0),
        CollectedTest("middle", seconds=5.0),
    ]
    assert order(tests, arrange(tests, {}), {"a": 10.0}) == [2, 3, 1, 0]


def test_the_longest_test_of_a_block_comes_first_where_several_workers_share_it() -> None:
    tests = [CollectedTest(str(n), ("a",), seconds=float(n)) for n in range(3)]
    pool = Pool(tests, arrange(tests, {}), longest_first=True)
    assert [pool.pick(n, 0.0, lambda needs: -math.inf) for n in range(3)] == [2, 1, 0]


def test_a_worker_goes_on_with_the_unit_that_it_is_in() -> None:
    tests = [
        CollectedTest("1", ("a",), unit=0),
        CollectedTest("2", ("a",), unit=0),
        CollectedTest("3", ("a",)),
    ]
    pool = Pool(tests, arrange(tests, {}))

    def pick(worker: str) -> int | None:
        return pool.pick(worker, 0.0, lambda needs: -math.inf)

    assert [pick("one"), pick("two"), pick("one"), pick("two")] == [0, 2, 1, None]


def test_what_a_lost_worker_had_goes_back_as_a_whole() -> None:
    tests = [CollectedTest(str(n), ("a",), unit=0) for n in range(4)]
    pool = Pool(tests, arrange(tests, {}))
    taken = [pool.pick("lost", 0.0, lambda needs: 0.0) for _ in range(2)]
    assert taken == [0, 1]
    pool.put_back("lost", [1])
    assert [pool.pick("new", 0.0, lambda needs: 0.0) for _ in range(4)] == [1, 2, 3, None]


def test_the_least_time_of_an_endpoint() -> None:
    assert least_seconds(10.0, [1.0, 2.0, 3.0], workers=1) == 16.0
    assert least_seconds(10.0, [1.0, 2.0, 3.0], workers=2) == 13.0
    assert least_seconds(10.0, [1.0, 5.0], workers=4) == 15.0


@pytest.mark.parametrize("seed", range(60))
def test_blocks_are_never_more_expensive_than_the_order_of_the_collection(seed: int) -> None:
    dice = random.Random(seed)
    cold = {name: dice.uniform(1, 20) for name in "abc"}
    tests = [
        CollectedTest(
            str(n),
            tuple(dice.sample("abc", dice.choice([0, 0, 1, 1, 2]))),
            unit=dice.choice([-1, -1, n // 5]),
            seconds=dice.uniform(0, 5),
        )
        for n in range(dice.randint(1, 30))
    ]
    found = arrange(tests, {})
    now = arranged_spans(tests, found, cold, 1)
    before = collected_spans(tests, cold, 1)
    assert sum(span.seconds for span in now.values()) <= 1e-9 + sum(
        span.seconds for span in before.values()
    )
    assert sorted(order(tests, found, cold)) == list(range(len(tests)))


@pytest.mark.parametrize("seed", range(20))
def test_several_workers_get_every_test_once(seed: int) -> None:
    dice = random.Random(seed)
    tests = [
        CollectedTest(
            str(n), tuple(dice.sample("abc", dice.choice([0, 1, 2]))), unit=n // dice.choice([2, 5])
        )
        for n in range(25)
    ]
    pool, given = Pool(tests, arrange(tests, {}), longest_first=True), list[int]()
    while pool:
        for worker in range(3):
            place = pool.pick(worker, 0.0, lambda needs: dice.choice([-math.inf, 5.0]))
            given += [] if place is None else [place]
    assert sorted(given) == list(range(len(tests)))
