"""The costs file: what each test cost when it last passed, one line each. Users commit it.

Money is nano-USD inside, and decimal strings of USD in the file. The file has the seconds for which
each test needed an endpoint. It has no uptime costs, because a test's share depends on the tests
that run beside it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

from pytest_hfbudget.errors import ConfigError
from pytest_hfbudget.files import write_whole
from pytest_hfbudget.ledger import Charge
from pytest_hfbudget.metering.prompts import DOUBT, FORGET, RULE, Fact
from pytest_hfbudget.money import beside, parse_usd, usd_text

SCHEMA = 1
# The name has the version of the counting rule, so counts by an older rule are ignored and dropped.
PROMPTS = f"prompt_tokens_{RULE}"
_COUNTS = ("calls", "input_tokens", "output_tokens", "endpoint_s")

# A time that differs by less than a fifth is not written, so that the file rarely changes.
_SAME_TIME = 5


class Cost(NamedTuple):
    """What one test has cost, all its attempts together.

    Attributes:
        spent: nano-USD of its calls.
        endpoint_s: seconds for which it used endpoints; 0 if it used none.
        estimated: whether some calls were charged at an upper bound.
    """

    spent: int = 0
    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    endpoint_s: int = 0
    estimated: bool = False

    @classmethod
    def of(cls, charges: Iterable[Charge], endpoint_s: int = 0) -> Cost | None:
        """The cost of a test from its charges; None if a call was replayed or has no price."""
        every = tuple(charges)
        if any(charge.replayed or charge.nano_usd is None for charge in every):
            return None
        return cls(
            spent=sum(charge.nano_usd or 0 for charge in every),
            calls=len(every),
            input_tokens=sum(charge.input_tokens for charge in every),
            output_tokens=sum(charge.output_tokens for charge in every),
            endpoint_s=endpoint_s,
            estimated=any(charge.estimated for charge in every),
        )


@dataclass(frozen=True)
class Costs:
    """The content of a costs file.

    Attributes:
        tests: the cost of each test by node id.
        cold_starts: seconds from an endpoint's resume until it served, by ``namespace/name``.
        counts: the tokens that servers have counted in prompts.
    """

    tests: Mapping[str, Cost] = field(default_factory=dict)
    cold_starts: Mapping[str, int] = field(default_factory=dict)
    counts: tuple[Fact, ...] = ()

    @classmethod
    def load(cls, path: Path) -> Costs:
        """Read a file.

        Raises:
            ConfigError: it can't be read, or is not a costs file.
        """
        try:
            return cls.parse(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"{path}: can't be read: {error.strerror}") from None
        except (ValueError, RecursionError) as error:
            reason = " ".join(str(error).split())
            raise ConfigError(
                f"{path} is not a costs file: {reason}. Correct it, or delete it and write it anew "
                "with pytest --hf-store-costs"
            ) from None

    @classmethod
    def parse(cls, text: str) -> Costs:
        """Read the text of a file.

        Raises:
            ValueError: it is not a costs file. Unknown keys are ignored.
        """
        read = _table(json.loads(text), "the file")
        if read.get("schema") != SCHEMA:
            raise ValueError(f"its schema is {read.get('schema')!r}, and only {SCHEMA} is known")
        tests = _table(read.get("tests", {}), "tests")
        endpoints = _table(read.get("endpoints", {}), "endpoints")
        return cls(
            {name: _cost(row, name) for name, row in tests.items()},
            {
                name: _count(_table(row, name), "cold_start_s", name)
                for name, row in endpoints.items()
            },
            tuple(_fact(*row) for row in _table(read.get(PROMPTS, {}), PROMPTS).items()),
        )

    def with_run(
        self,
        tests: Mapping[str, Cost],
        cold_starts: Mapping[str, int],
        exist: Collection[str] | None = None,
    ) -> Costs:
        """The costs, updated with those of one more run.

        Args:
            tests: the costs of the tests of that run.
            cold_starts: the seconds of its cold starts.
            exist: the ids of all tests of the project, if the run had all of them; others are
                removed. None if it had only a part.
        """
        kept = {n: c for n, c in self.tests.items() if exist is None or n in exist}
        fresh = {name: _steady(cost, self.tests.get(name)) for name, cost in tests.items()}
        starts = {n: _steady_time(s, self.cold_starts.get(n)) for n, s in cold_starts.items()}
        return replace(self, tests={**kept, **fresh}, cold_starts={**self.cold_starts, **starts})

    def with_counts(self, learned: Iterable[Fact], *, whole: bool) -> Costs:
        """The costs, updated with the token counts of one more run.

        Args:
            whole: whether all tests have run; then counts of other prompts are dropped.
        """
        kept = {} if whole else {fact[:3]: fact for fact in self.counts}
        for fact in learned:
            if fact.key in (FORGET, DOUBT):
                kept = {key: each for key, each in kept.items() if key[:2] != fact[:2]}
            elif fact.tokens and not fact.model.startswith("http"):
                kept[fact[:3]] = fact
        return replace(self, counts=tuple(kept.values()))

    def text(self) -> str:
        """The text of the file: sorted, one line for each test, so that a diff is readable."""
        starts = {name: {"cold_start_s": s} for name, s in self.cold_starts.items()}
        tests = {name: _row(cost) for name, cost in self.tests.items()}
        parts = [f'"schema": {SCHEMA}', _lines("endpoints", starts), _lines("tests", tests)]
        if self.counts:
            counts = {f"{f.model}:{f.provider} {f.key}": f.tokens for f in self.counts}
            parts.append(_lines(PROMPTS, counts))
        return "{\n " + ",\n ".join(parts) + "\n}\n"

    def write(self, path: Path) -> None:
        """Write the file whole or not at all.

        Raises:
            OSError: it can't be written.
        """
        write_whole(path, self.text())


def _fact(name: str, tokens: object) -> Fact:
    asked, _, key = name.rpartition(" ")
    model, _, provider = asked.rpartition(":")
    if not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 1:
        raise ValueError(f"{PROMPTS}, {name}: is not a whole number of 1 or more")
    if not (model and provider and key):
        raise ValueError(f"{PROMPTS}, {name!r}: is not a model, its provider and a hash")
    return Fact(model, provider, key, tokens)


def _lines(name: str, rows: Mapping[str, Any]) -> str:
    body = ",\n".join(f"  {json.dumps(key)}: {json.dumps(rows[key])}" for key in sorted(rows))
    return f'"{name}": {{\n{body}\n }}' if body else f'"{name}": {{}}'


def _row(cost: Cost) -> dict[str, Any]:
    return {"usd": usd_text(cost.spent), **dict(_items(cost))}


def _items(cost: Cost) -> Iterator[tuple[str, int | bool]]:
    for key in (*_COUNTS, "estimated"):
        if value := getattr(cost, key):
            yield key, value


def _steady(cost: Cost, before: Cost | None) -> Cost:
    if before is None:
        return cost
    return cost._replace(endpoint_s=_steady_time(cost.endpoint_s, before.endpoint_s))


def _steady_time(seconds: int, before: int | None) -> int:
    same = before is not None and abs(seconds - before) * _SAME_TIME < before
    return before if same and before is not None else seconds


def _table(value: object, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where} is not an object")
    return value


def _cost(value: object, where: str) -> Cost:
    row = _table(value, where)
    if not isinstance(row.get("usd"), str):
        raise ValueError(f'{where}: usd is not a string such as "0.0005"')
    try:
        spent = parse_usd(row["usd"])
    except ValueError as error:
        raise ValueError(f"{where}: usd: {error}") from None
    counts = {key: _count(row, key, where) for key in _COUNTS}
    return Cost(spent, **counts, estimated=row.get("estimated") is True)


def _count(row: Mapping[str, Any], key: str, where: str) -> int:
    value = row.get(key, 0)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{where}: {key} is not a whole number of 0 or more")
    return value


def increase(
    charged: int,
    recorded: Cost,
    most: Fraction,
    charges: Callable[[], tuple[Charge, ...]],
    *,
    where: str,
) -> str | None:
    """The failure message of a test whose cost rose by more than ``most``; None if it did not.

    If the record has no charges at an upper bound, only the exact charges are compared with it. If
    it has some, all charges are compared, since the same call has the same bound.

    Args:
        charged: nano-USD in this run for calls and uptime. A quick check: only the cost of calls
            is recorded and compared.
        most: the allowed increase as a fraction of the recorded cost.
        charges: returns the charges of the test; called only if needed.
        where: the name of the costs file.
    """
    limit = recorded.spent * (1 + most)
    if charged <= limit:
        return None
    calls = charges()
    spent = sum(charge.nano_usd or 0 for charge in calls)
    certain = sum(charge.nano_usd or 0 for charge in calls if not charge.estimated)
    if (spent if recorded.estimated else certain) <= limit:
        return None
    marks = [
        f"; {word} with charges at an upper bound"
        for word, marked in (("recorded", recorded.estimated), ("now", certain != spent))
        if marked
    ]
    cost, before = beside(None, spent, recorded.spent)
    return (
        f"its calls cost {cost}, and {before} is recorded in {where}: "
        f"{_more(spent, recorded.spent)}, but --hf-max-increase allows {_percent(most)}"
        f"{''.join(marks)}. If this is intended, run it with --hf-store-costs and without "
        "--hf-max-increase, and commit the file."
    )


def _more(now: int, before: int) -> str:
    if not before:
        return "any cost is an increase over $0"
    return f"{_percent(Fraction(now - before, before))} more"


def _percent(share: Fraction) -> str:
    return f"{round(float(share * 100), 1):g}%"
