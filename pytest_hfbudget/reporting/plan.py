"""The plan: what tests are expected to cost, before they run. Money is nano-USD."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from pytest_hfbudget.endpoints.uptime import cost, started_minutes
from pytest_hfbudget.ledger import Scope
from pytest_hfbudget.money import FOR_PEOPLE, Amounts, beside, exact
from pytest_hfbudget.reporting import counted
from pytest_hfbudget.reporting.costs import Cost
from pytest_hfbudget.reporting.terminal import TerminalLine, bar, name_width, wrapped
from pytest_hfbudget.reporting.timeline import NO_MINUTES, Minutes
from pytest_hfbudget.text import shortened

# How many of the most expensive tests are shown one by one.
MOST = 20


@dataclass(frozen=True)
class PlannedTest:
    """One test that would run.

    Attributes:
        cost: what it cost when it last passed; None if it is not in the costs file.
        cap: the innermost budget around it that has a cap, without the session budget; else None.
    """

    id: str
    cost: Cost | None
    cap: Scope | None = None

    @property
    def quiet(self) -> bool:
        """Whether it is known to make no call and to need no endpoint."""
        return self.cost is not None and not (self.cost.calls or self.cost.endpoint_s)


@dataclass(frozen=True)
class PlannedEndpoint:
    """One endpoint that would be resumed.

    Attributes:
        cold_start_s: seconds from its resume until it serves; 0 if it is running.
        cold_start: how that is known: ``recorded``, ``assumed`` or ``running``.
        kept: it is running and is to keep running, so this run does not pay for it.
        tests_s: seconds for which the recorded tests need it.
        unrecorded: how many tests need it for an unknown time.
        atto_per_hour: atto-USD per hour of all its replicas; None if unknown.
    """

    name: str
    cold_start_s: int
    cold_start: str
    tests_s: int
    unrecorded: int
    atto_per_hour: int | None
    billing_minute_s: float = 60.0
    kept: bool = False

    @property
    def minutes(self) -> int:
        """The billing minutes that it is expected to start."""
        if self.kept:
            return 0
        return started_minutes(self.cold_start_s + self.tests_s, self.billing_minute_s)

    @property
    def nano_usd(self) -> int | None:
        """Nano-USD of these minutes; None if the price is unknown."""
        if self.kept:
            return 0
        return None if self.atto_per_hour is None else cost(self.atto_per_hour, self.minutes)


class PlannedBlock(NamedTuple):
    """A number of tests that need the same endpoints (``names``), or none, and their seconds."""

    names: tuple[str, ...]
    tests: int
    seconds: float


class PlannedSpan(NamedTuple):
    """How long an endpoint is expected to run.

    Attributes:
        start: seconds from the first test to its resume.
        seconds: from its resume to its pause, in the planned order.
        collected: the same in the order of the collection.
    """

    endpoint: PlannedEndpoint
    start: float
    seconds: float
    collected: float


class PlannedOrder(NamedTuple):
    """The order of the tests.

    Attributes:
        kept: why the order of the collection is kept; empty if the tests are sorted.
    """

    kept: str
    blocks: tuple[PlannedBlock, ...]
    spans: tuple[PlannedSpan, ...]


@dataclass(frozen=True)
class Plan:
    """The plan of one run. ``cap`` is that of the session budget."""

    tests: tuple[PlannedTest, ...]
    endpoints: tuple[PlannedEndpoint, ...] = ()
    cap: int | None = None
    order: PlannedOrder | None = None

    @property
    def recorded(self) -> tuple[PlannedTest, ...]:
        """Tests whose cost is known from an earlier run."""
        return tuple(test for test in self.tests if test.cost is not None)

    @property
    def bounded(self) -> tuple[PlannedTest, ...]:
        """Tests without a record, but with a cap."""
        return tuple(test for test in self.tests if test.cost is None and test.cap is not None)

    @property
    def unknown(self) -> int:
        """How many tests have neither a record nor a cap."""
        return len(self.tests) - len(self.recorded) - len(self.bounded)

    @property
    def expected(self) -> int:
        """Nano-USD: the recorded cost of tests plus the uptime of endpoints."""
        calls = sum(test.cost.spent for test in self.tests if test.cost is not None)
        return calls + sum(endpoint.nano_usd or 0 for endpoint in self.endpoints)

    @property
    def more(self) -> int:
        """Nano-USD that tests without a record can cost at most, by their caps.

        A cap that several tests share counts once.
        """
        caps = {test.cap.key: test.cap.cap or 0 for test in self.bounded if test.cap is not None}
        return sum(caps.values())


def lines(
    plan: Plan,
    *,
    block_characters: bool = True,
    width: int | None = None,
    usd: Amounts = FOR_PEOPLE,
) -> Iterator[TerminalLine]:
    """The lines of the plan for a terminal; the arguments are those of `terminal.summary`."""
    for line in _lines(plan, ("█", "░") if block_characters else ("#", "."), width, usd):
        yield from wrapped(line, width)


def _lines(
    plan: Plan, drawn: tuple[str, str], width: int | None, usd: Amounts
) -> Iterator[TerminalLine]:
    yield _total(plan, drawn, usd)
    for endpoint in plan.endpoints:
        yield _endpoint(endpoint, usd)
    yield from _order(plan.order) if plan.order is not None else ()
    shown = sorted((test for test in plan.tests if not test.quiet), key=_most_expensive_first)
    tails = {test.id: _expected(test, usd) for test in shown[:MOST]}
    names = name_width(tails, tails.values(), width)
    for name, tail in tails.items():
        yield TerminalLine(f"  {shortened(name, names):<{names}}  {tail}")
    if len(shown) > MOST:
        yield TerminalLine(f"  … and {counted(len(shown) - MOST, 'test')} more")
    yield from _remarks(plan)


def excess(plan: Plan) -> str | None:
    """The message for a plan that exceeds the session budget; None if it fits.

    Only the expected cost counts. The caps of the tests may add up to more than the session cap.
    """
    if plan.cap is None or plan.expected <= plan.cap:
        return None
    expected, cap = beside(plan.cap, plan.expected)
    return (
        f"this run is expected to cost {expected}, and its session budget is "
        f"{cap}. Raise --hf-session-budget, or select fewer tests; pytest "
        "--hf-plan shows what each of them costs."
    )


def _most_expensive_first(test: PlannedTest) -> tuple[int, str]:
    known = test.cost.spent if test.cost is not None else test.cap.cap if test.cap else None
    return -(known or 0), test.id


def _total(plan: Plan, drawn: tuple[str, str], usd: Amounts) -> TerminalLine:
    known = f"{len(plan.recorded)} of {counted(len(plan.tests), 'test')} recorded"
    if plan.cap is None:
        return TerminalLine(f"expected {usd.show(plan.expected)} ({known}; no session budget)")
    used = bar(plan.expected, plan.cap, drawn)
    colour = "red" if plan.expected > plan.cap else "green"
    expected, cap = usd.beside(plan.cap, plan.expected)
    return TerminalLine(f"expected {expected} of {cap} {used} ({known})", colour)


def _endpoint(endpoint: PlannedEndpoint, usd: Amounts) -> TerminalLine:
    if endpoint.kept:
        return TerminalLine(
            f"  {endpoint.name}: kept running, as it was found; this run pays nothing"
        )
    nano_usd = endpoint.nano_usd
    price = "its price is unknown" if nano_usd is None else usd.show(nano_usd)
    start = (
        "it is running"
        if endpoint.cold_start == "running"
        else f"cold start {endpoint.cold_start_s} s, {endpoint.cold_start}"
    )
    tests = f"tests {endpoint.tests_s} s"
    if endpoint.unrecorded:
        tests += f", {counted(endpoint.unrecorded, 'test')} unrecorded"
    least = "at least " if endpoint.unrecorded else ""
    text = f"  {endpoint.name}: {least}{endpoint.minutes} min, {price} ({start}; {tests})"
    return TerminalLine(text, "yellow" if nano_usd is None else "")


def _order(order: PlannedOrder) -> Iterator[TerminalLine]:
    if order.kept:
        yield TerminalLine(f"  order: as collected ({order.kept})")
        return
    yield TerminalLine("  order:")
    for block in order.blocks:
        names = ", ".join(block.names) or "no endpoint, during the first cold start and at the end"
        yield TerminalLine(f"    {names}: {counted(block.tests, 'test')}, {block.seconds:.0f} s")
    now = collected = NO_MINUTES
    for span in order.spans:
        own, other = (_minutes(span.endpoint, s) for s in (span.seconds, span.collected))
        now, collected = now.plus(own), collected.plus(other)
        known = span.endpoint.atto_per_hour is not None
        here, there = (str(each) if known else f"{each.minutes:,}" for each in (own, other))
        times = f"{span.start:.0f} s to {span.start + span.seconds:.0f} s"
        yield TerminalLine(
            f"    {span.endpoint.name} runs from {times}, minutes: {here}; as collected: {there}"
        )
    saved = collected.minus(now)
    if saved.minutes > 0 or saved.nano_usd > 0:
        known = all(span.endpoint.atto_per_hour is not None for span in order.spans)
        minutes = saved if known else f"{saved.minutes:,}"
        yield TerminalLine(
            f"    minutes saved: {minutes}; --hf-order=collected keeps your order", "green"
        )


def _minutes(endpoint: PlannedEndpoint, seconds: float) -> Minutes:
    minutes = started_minutes(seconds, endpoint.billing_minute_s)
    return Minutes(minutes, cost(endpoint.atto_per_hour or 0, minutes))


def _expected(test: PlannedTest, usd: Amounts) -> str:
    if test.cost is None:
        return f"at most {exact(test.cap.cap or 0)}" if test.cap is not None else "unknown"
    known = test.cost
    parts = [counted(known.calls, "call")]
    if known.input_tokens or known.output_tokens:
        parts.append(f"{known.input_tokens} + {known.output_tokens} tokens")
    if known.endpoint_s:
        parts.append(f"{known.endpoint_s} s on an endpoint")
    if known.estimated:
        parts.append("an upper bound")
    return f"{usd.show(known.spent)} ({', '.join(parts)})"


def _remarks(plan: Plan) -> Iterator[TerminalLine]:
    if quiet := sum(test.quiet for test in plan.tests):
        yield TerminalLine(f"  {counted(quiet, 'test')} without calls")
    if bounded := len(plan.bounded):
        yield TerminalLine(
            f"  {counted(bounded, 'test')} without a record: at most {exact(plan.more)} more, "
            "by caps; not in the sum",
            "yellow",
        )
    if plan.unknown:
        yield TerminalLine(
            f"  {counted(plan.unknown, 'test')} without a record or a cap: unknown, "
            "not in the sum; pytest --hf-store-costs records them",
            "yellow",
        )
    if unpriced := [each.name for each in plan.endpoints if each.nano_usd is None]:
        yield TerminalLine(f"  uptime of {', '.join(unpriced)}: unknown, not in the sum", "yellow")
