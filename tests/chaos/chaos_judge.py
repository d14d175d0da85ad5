"""Compares the emulator's log and invoice with the ledger, whatever either is made by.

Each call goes out with a token of its own, so that every row of the invoice has an owner.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

from chaos_plan import AMPLE_S, CONTEXT, Block, Call, Plan, bound
from chaos_run import Outcome, Run

from pytest_hfbudget import BudgetExceededError
from pytest_hfbudget.emulator import EmulatorClient
from pytest_hfbudget.history.billing import BillingClient
from pytest_hfbudget.ledger import Charge
from pytest_hfbudget.reporting.bill import Booked

METERED = ("chat", "task")
FIRST_ERROR = 400
FIRST_SERVER_ERROR = 500
QUIET_S = 10.0


@dataclass(frozen=True)
class Row:
    """One request that reached the emulator, with what it is billed for."""

    token: str
    status: int | None
    nano_usd: int
    billed: str
    fault: dict[str, Any]


def rows(emulator: EmulatorClient) -> list[Row]:
    """Every paid request, once all of them are over.

    The invoice is in the order of arrival, and so is the log.
    """
    arrived = [e for e in emulator.log(kind="request", phase="arrived") if e["op"] in METERED]
    for entry in arrived:
        emulator.wait_for(phase="answered", request=entry["seq"], timeout=QUIET_S)
    answered = {e["request"]: e for e in emulator.log(kind="request", phase="answered")}
    billed = emulator.invoice()["calls"]
    bugs = emulator.log(kind="bug")
    assert not bugs, f"the emulator itself is at fault: {bugs}"
    assert len(billed) == len(arrived)
    return [
        Row(
            entry["token"],
            answered[entry["seq"]]["status"],
            row["nano_usd"] or 0,
            row["billed"],
            answered[entry["seq"]].get("fault", {}),
        )
        for entry, row in zip(arrived, billed, strict=True)
    ]


# What the bill counts as a request: also one that the service has no price for.
SERVED = ("full", "generated", "unpriced")
# Also a stream that was left after its final usage: its charge is exact.
COMPLETE = ("200", "closed")


@dataclass
class Judge:
    """Everything that has to be true of a run."""

    run: Run
    emulator: EmulatorClient

    def check(self) -> dict[str, int]:
        """Raise AssertionError unless all is well; else some figures, to be added up."""
        self.nothing_is_left()
        self.no_cap_is_broken()
        self.the_bill_is_the_invoice()
        for outcome in self.run.outcomes:
            self.charged_as_billed(outcome)
            self.judge_refusal(outcome)
        assert len(self.run.outcomes) == len(self.plan.calls())
        if self.plan.counts_alike:
            over = [charge for charge in self.run.ledger.charges() if charge.over]
            assert not over, f"more was charged than was held: {over}"
        if self.plan.purpose != "tight":
            refused = [o.error for o in self.run.outcomes if o.word == "refused"]
            assert not refused, f"there was room for everything: {refused}"
        return self.figures()

    # --- 1: caps

    def no_cap_is_broken(self) -> None:
        for block in self.plan.scopes():
            own = [row for call in block.calls() for row in self.rows_of(call)]
            billed = sum(row.nano_usd for row in own)
            spent = self.totals[block.name].spent if block.name in self.totals else 0
            lost = sum(map(self.lost, block.calls()))
            assert billed <= spent + lost, f"{block.name}: billed {billed}, but {spent} charged"
            if block.cap is not None:
                cap = block.cap + self.outgrown(block)
                assert spent <= cap, f"{block.name}: {spent} of {cap} charged"
                assert billed <= cap, f"{block.name}: {billed} of {cap} billed"
            if block.max_calls is not None:
                assert len(own) <= block.max_calls, f"{block.name}: {len(own)} calls"

    def outgrown(self, block: Block) -> int:
        """What images cost beyond their hold, where a server counts them as no one could know."""
        if not self.plan.images_outgrow:
            return 0
        charges = [charge for call in block.calls() for charge in self.charges_of(call)]
        return sum(charge.over for charge in charges) + sum(map(self.lost, block.calls()))

    def lost(self, call: Call) -> int:
        """What such an image costs beyond its charge, if no usage came back: that is its hold."""
        charges = self.charges_of(call)
        told = not any(charge.estimated for charge in charges)
        if told or not call.pictures or not self.plan.images_outgrow:
            return 0
        billed = sum(row.nano_usd for row in self.rows_of(call))
        return max(billed - sum(charge.nano_usd or 0 for charge in charges), 0)

    def the_bill_is_the_invoice(self) -> None:
        """Every request has told its session; what is booked for that is the ledger if exact."""
        hub, now = BillingClient(f"{self.emulator.url}/hub", "hf_judge"), time.time()
        found = hub.sessions([self.run.session_id], now, now)
        booked = found.get(self.run.session_id, Booked(0, 0))
        assert booked.nano_usd == sum(row.nano_usd for row in self.rows)
        assert booked.requests == sum(row.billed in SERVED for row in self.rows)
        charges = self.run.ledger.charges()
        if not any(charge.estimated for charge in charges):
            made = [c for c in charges if c.session_id == self.run.session_id]
            assert booked.nano_usd == sum(charge.nano_usd or 0 for charge in made)
            assert booked.requests == sum(charge.status in COMPLETE for charge in made)

    # --- 2: each call

    def charged_as_billed(self, outcome: Outcome) -> None:
        call = outcome.call
        charges, own = self.charges_of(call), self.rows_of(call)
        sent = [charge for charge in charges if charge.status != "refused"]
        what = f"{outcome}\ncharged: {charges}\nbilled: {own}"
        assert len(own) <= len(sent), f"sent without a charge: {what}"
        vanishes = call.cancelled_after is not None or self.plan.timeout is not None
        assert vanishes or len(own) == len(charges), f"charged without being sent: {what}"
        charged, billed = sum(c.nano_usd or 0 for c in charges), sum(row.nano_usd for row in own)
        assert charged + self.lost(call) >= billed, f"{billed} billed, {charged} charged: {what}"
        if outcome.word == "answered" and self.tells(call) and not self.misled(own):
            assert charged == billed, f"{billed} billed, {charged} charged: {what}"
            assert not any(charge.estimated for charge in charges), what
        if not any(charge.estimated for charge in charges):
            assert charged == billed, f"{billed} billed, {charged} charged as exact: {what}"

    def tells(self, call: Call) -> bool:
        """Whether a complete answer to it says all that it costs."""
        switch = self.plan.switch
        if call.provider is None and call.kind == "chat" and not switch("provider_header", True):
            return False
        if call.kind in ("embed", "image"):
            return True
        if call.ending is None:
            return bool(switch("usage", "always") == "always")
        silent = switch("stream_usage", "by_provider") in (
            "first_chunk",
            "never",
            "rejects_options",
        )
        return call.kind == "text" or not silent

    # --- 3 and 5: refusals

    def judge_refusal(self, outcome: Outcome) -> None:
        error, call = outcome.error, outcome.call
        if not isinstance(error, BudgetExceededError):
            return
        if "was stopped after" in str(error):
            assert call.limit is None, f"{call} had a limit of its own"
            assert self.rows_of(call), f"{call} was cut off without being sent"
            return
        # What a server did not take as it was, may not fit when it is sent in another way.
        served = [
            row
            for row in self.rows_of(call)
            if (row.status or 0) < FIRST_ERROR and not self.sent_again(row)
        ]
        assert not served, f"{call} was refused and sent: {error}"
        (block,) = (b for b in self.plan.scopes() if self.key(b) == error.scope_key)
        assert call in tuple(block.calls()), f"{call} is not in {block.name}: {error}"
        if "max_calls" in str(error):
            self.judge_count(block, error)
        else:
            self.judge_amount(block, call, error)

    def judge_count(self, block: Block, error: Exception) -> None:
        assert block.max_calls is not None, error
        made = self.totals[block.name].calls
        # One that leaves the line, or is refused on its way out, is in flight until then.
        own = set(block.calls())
        stopped = sum(o.call in own and o.word != "answered" for o in self.run.outcomes)
        assert made + stopped > block.max_calls, f"{made} made: {error}"

    def judge_amount(self, block: Block, call: Call, error: BudgetExceededError) -> None:
        """Whether it is true that there was no room, by what had been charged until then."""
        cap, needed, spent, held = (
            error.figures.cap,
            error.figures.needed,
            error.figures.spent,
            error.figures.held,
        )
        assert block.cap == cap, error
        assert needed > cap - spent - held, f"it fitted: {error}"
        if any(map(self.sent_again, self.rows_of(call))):
            return  # what was held for the first of several requests is needed for each
        charged = self.run.ledger.charges_in(error.scope_key)
        steps = {0, *accumulate(charge.nano_usd or 0 for charge in charged)}
        assert spent in steps, f"{spent} was never spent: {error}"
        prices, shortest = dict(self.plan.prices), 1 if call.limit is None else call.limit
        if call.limit is None and self.plan.switch("limit_names", "any") == "none":
            shortest = CONTEXT * 2  # a server that takes no limit may fill it
        most = bound(call, prices, written=shortest)
        assert needed <= most, f"{needed} is more than {most}: {error}"
        if self.waits_for_all:
            assert needed > cap - spent, f"it should have waited: {error}"

    @property
    def waits_for_all(self) -> bool:
        """Whether nothing but what is spent is a reason to refuse: no call waits for itself."""
        kept = any(call.ending == "keep" for call in self.plan.calls())
        return self.plan.hold_wait == AMPLE_S and not kept

    def misled(self, own: Iterable[Row]) -> bool:
        """Whether an answer says less than what was billed: it is no JSON, or not the first."""
        return any(row.fault.get("garbage") or self.sent_again(row) for row in own)

    def sent_again(self, row: Row) -> bool:
        """Whether the client may have sent this request once more by itself."""
        retried = self.plan.retries and (row.status is None or row.status >= FIRST_SERVER_ERROR)
        return retried or row.fault.get("status") in (307, 308)

    # --- 4: the end

    def nothing_is_left(self) -> None:
        for name, total in self.totals.items():
            assert total.held == 0, f"{name}: {total.held} is still held"
        assert self.run.ledger.waiting() == 0
        charges = self.run.ledger.charges()
        session = self.totals["session budget"]
        assert session.calls == len(charges)
        assert session.spent == sum(charge.nano_usd or 0 for charge in charges)

    # --- facts

    @property
    def plan(self) -> Plan:
        return self.run.plan

    @cached_property
    def totals(self) -> dict[str, Any]:
        return {scope.name: totals for scope, totals in self.run.ledger.scopes().values()}

    @cached_property
    def keys(self) -> dict[str, str]:
        return {scope.name: key for key, (scope, _) in self.run.ledger.scopes().items()}

    def key(self, block: Block) -> str | None:
        return self.keys.get(block.name)

    @cached_property
    def rows(self) -> list[Row]:
        return rows(self.emulator)

    def rows_of(self, call: Call) -> list[Row]:
        own = hashlib.sha256(self.run.token(call).encode()).hexdigest()[:8]
        return [row for row in self.rows if row.token == own]

    def charges_of(self, call: Call) -> tuple[Charge, ...]:
        key = self.keys.get(call.name)
        return self.run.ledger.charges_in(key) if key else ()

    def figures(self) -> dict[str, int]:
        """Counts of what has happened."""
        words = [outcome.word for outcome in self.run.outcomes]
        counts = {word: words.count(word) for word in ("answered", "left", "refused", "failed")}
        charges = self.run.ledger.charges()
        billed = sum(row.nano_usd for row in self.rows)
        return {
            "runs": 1,
            "calls": len(words),
            **counts,
            "sent": len(self.rows),
            "over": sum(charge.over > 0 for charge in charges),
            "learned": len(self.run.runtime.meter.counts.facts),
            "estimated": sum(charge.estimated for charge in charges),
            "billed": billed,
            "charged": sum(charge.nano_usd or 0 for charge in charges),
        }
