"""One randomised run as plain data: made from its seed alone, so that a run can be had again."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

Ending = Literal["read", "close", "drop", "unread", "keep"]
Row = tuple[tuple[str, str], ...]

CONTEXT = 4096
# What is sent beside the words of a prompt makes no more tokens than this, by any server's count.
OVERHEAD = 1000
# Nor does an image, where nothing less is stated. By its size, the largest one here makes 900.
IMAGE = 16_384
STATED = 1000
SIZES = ((56, 56), (280, 280), (280, 290), (840, 840))
AMPLE_S = 30.0
SLOW_S = 0.25
IMPATIENT_S = 0.1
COMPUTED_S = "0.05"  # what a call is billed for where time is, less than any time-out
# Where a paid request goes, and no other.
PAID = "/chat/completions$|/hf-inference/models/"


class Picture(NamedTuple):
    """An image in a message: a PNG of a size and a shade, or what lies behind a URL."""

    width: int
    height: int
    shade: int
    linked: bool


class Kind(NamedTuple):
    """A model, its task as the Hub calls it, and who serves it: clients remember that."""

    model: str
    task: str
    providers: tuple[str, ...]


KINDS = {
    # Of a family whose images are held by their size.
    "chat": Kind("Qwen/Qwen3-VL-chaos", "text-generation", ("groq", "novita", "together")),
    "text": Kind("chaos/text", "text-generation", ("hf-inference",)),
    "embed": Kind("chaos/embed", "feature-extraction", ("hf-inference",)),
    "image": Kind("chaos/image", "text-to-image", ("hf-inference",)),
}


@dataclass(frozen=True)
class Call:
    """One call: ``words`` is what the model wants to write, ``limit`` what it is allowed to.

    Attributes:
        guise: what its limit is written as: 20, 20.0 or "20".
        seen: how many chunks of its stream are looked at before it is left.
        cancelled_after: seconds after which the task that makes it is cancelled.
        empty: whether it is made in an empty context, which does not say what encloses it.
        pictures: what its message shows beside its prompt.
    """

    number: int
    kind: str
    provider: str | None
    prompt: str
    words: int
    limit: int | None
    n: int = 1
    ending: Ending | None = None
    guise: type = int
    seen: int = 1
    cancelled_after: float | None = None
    empty: bool = False
    pictures: tuple[Picture, ...] = ()

    @property
    def name(self) -> str:
        return f"call {self.number}"

    @property
    def given_limit(self) -> int | float | str | None:
        return None if self.limit is None else self.guise(self.limit)


@dataclass(frozen=True)
class Block:
    """A ``budget()`` around some steps; ``cap`` is in nano-USD."""

    name: str
    cap: int | None
    max_calls: int | None
    steps: tuple[Call | Block, ...]

    def calls(self) -> Iterator[Call]:
        """All that are made inside."""
        for step in self.steps:
            if isinstance(step, Call):
                yield step
            else:
                yield from step.calls()

    def blocks(self) -> Iterator[Block]:
        """Itself, and all blocks inside."""
        yield self
        for step in self.steps:
            if isinstance(step, Block):
                yield from step.blocks()


@dataclass(frozen=True)
class Lane:
    """What one thread does, or one asyncio task, one step after the other."""

    asynchronous: bool
    steps: tuple[Call | Block, ...]


@dataclass(frozen=True)
class Trial:
    """One test: its lanes start together, inside of a block if it has one."""

    name: str
    cap: int | None
    around: Block | None
    lanes: tuple[Lane, ...]

    def blocks(self) -> Iterator[Block]:
        """Every block of it, the test itself as the outermost."""
        steps = tuple(step for lane in self.lanes for step in lane.steps)
        yield from Block(self.name, self.cap, None, steps).blocks()
        if self.around is not None:
            yield Block(self.around.name, self.around.cap, self.around.max_calls, steps)


@dataclass(frozen=True)
class Plan:
    """Everything about one run.

    Attributes:
        purpose: how the caps were chosen. ``ample``: all bounds fit at once; ``patient``: what is
            really spent fits, beside one bound; ``tight``: whatever came up.
        prices: a row of a price table for each ``model:provider``.
        listed: whether the router's catalogue says them, instead of the project's table.
        late: calls that are made when the last test is over, and before the run is.
        retries: whether the sync client sends by a transport that tries again by itself.
        tokenizer: how the models' tokenizer counts, if they have one.
        image_tokens: what is stated as the most that an image makes.
        known: what the run knows of an earlier one that was the same: nothing; its counts; those of
            servers that have changed since; or wrong ones that another release has written.
    """

    seed: int
    purpose: str
    cap: int
    trials: tuple[Trial, ...]
    prices: tuple[tuple[str, Row], ...]
    listed: bool
    switches: tuple[tuple[str, Any], ...]
    faults: tuple[tuple[tuple[str, Any], ...], ...]
    hold_wait: float
    timeout: float | None
    late: tuple[Call, ...] = ()
    retries: bool = False
    tokenizer: str = "none"
    image_tokens: int = IMAGE
    known: str = "nothing"

    def calls(self) -> tuple[Call, ...]:
        return tuple(self.session.calls())

    @property
    def session(self) -> Block:
        """The whole run, as the block that it is."""
        steps = (s for trial in self.trials for lane in trial.lanes for s in lane.steps)
        return Block("session budget", self.cap, None, (*steps, *self.late))

    def scopes(self) -> tuple[Block, ...]:
        """All that has a cap, or may have one."""
        blocks = (block for trial in self.trials for block in trial.blocks())
        return (self.session, *blocks)

    @property
    def counts_alike(self) -> bool:
        """Whether each server counts a prompt alike whenever it does, as do the tokenizers."""
        steady = self.switch("recount", "alike") == "alike" and self.known != "changed"
        return steady and self.tokenizer in ("none", "right") and not self.images_outgrow

    @property
    def images_outgrow(self) -> bool:
        """Whether servers make more of an image than its model does, or than is stated."""
        return bool(self.switch("image_tokens", "flat") == "by_tiles")

    def changed(self) -> Plan:
        """The same, at servers whose templates have become a little longer or shorter."""
        others = ("groq=9", "novita=5", "together=3")
        return replace(self, switches=(*self.switches, ("template_tokens", others)))

    @property
    def later(self) -> Plan:
        """A second run of it. A server that counts one token more each time goes on doing so."""
        rises = self.switch("recount", "alike") == "more"
        return self.changed() if rises or self.known == "changed" else self

    def switch(self, name: str, default: Any) -> Any:
        return dict(self.switches).get(name, default)


def plan_of(seed: int) -> Plan:
    """The run of a seed."""
    plan, draw = _Planner(seed).plan(seed), random.Random(f"counts of {seed}")
    eyes = random.Random(f"eyes of {seed}")
    counts = {
        "image_tokens": eyes.choice(("by_size", "qwen3_vl", "by_content", "flat", "by_tiles")),
        "recount": draw.choice(("alike", "alike", "more")),
        "template_tokens": draw.choice(((), ("novita=7", "groq=40"))),
    }
    return replace(
        plan,
        switches=(*plan.switches, *counts.items()),
        tokenizer=draw.choice(("none", "none", "right", "half", "one")),
        image_tokens=eyes.choice((IMAGE, STATED)),
        known=draw.choice(("nothing", "nothing", "all", "changed", "another release's")),
    )


class _Planner:
    """Draws a plan; the caps come last, for they depend on what is called at which price."""

    def __init__(self, seed: int) -> None:
        self.draw, self.brush = random.Random(seed), random.Random(f"pictures of {seed}")
        self.numbers = 0
        self.blocks = 0

    def plan(self, seed: int) -> Plan:
        draw = self.draw
        self.purpose = draw.choice(("ample", "patient", "tight", "tight", "tight"))
        self.listed = draw.random() < 0.2
        self.prices = {
            f"{kind.model}:{provider}": self.row(name, provider)
            for name, kind in KINDS.items()
            for provider in kind.providers
        }
        lanes = [self.lanes() for _ in range(draw.choice((1, 1, 2)))]
        faults = () if self.purpose == "patient" else self.faults()
        slow = any(name == "hang" for fault in faults for name, _ in fault)
        trials = tuple(self.trial(at, lane) for at, lane in enumerate(lanes))
        calls = [c for t in trials for lane in t.lanes for s in lane.steps for c in _within(s)]
        late = tuple(self.late_call() for _ in range(draw.choice((0, 0, 1, 3))))
        calls += late
        waits = self.purpose == "patient" or draw.random() < 0.6
        return Plan(
            seed=seed,
            purpose=self.purpose,
            cap=self.cap(calls),
            trials=trials,
            prices=tuple(self.prices.items()),
            listed=self.listed,
            switches=self.switches(),
            faults=faults,
            hold_wait=AMPLE_S if waits else draw.choice((0.0, 0.02)),
            timeout=IMPATIENT_S if slow else None,
            late=late,
            # Each attempt needs room of its own.
            retries=self.purpose == "tight" and draw.random() < 0.3,
        )

    # --- what is called

    def lanes(self) -> list[Lane]:
        draw = self.draw
        count = draw.choice((1, 2, 4, 6))
        kinds = draw.choice(([False], [True], [False, True]))
        lanes = []
        for _ in range(count):
            asynchronous = draw.choice(kinds)
            calls = [self.call(asynchronous) for _ in range(draw.randint(1, 4))]
            lanes.append(Lane(asynchronous, tuple(self.nested(calls, 0))))
        return lanes

    def nested(self, steps: list[Call], depth: int) -> list[Call | Block]:
        """Some of the steps in blocks."""
        draw = self.draw
        if depth == 2 or not steps or draw.random() < 0.5:
            return list(steps)
        first = draw.randrange(len(steps))
        last = draw.randint(first + 1, len(steps))
        inside = self.nested(steps[first:last], depth + 1)
        return [*steps[:first], self.block(inside), *steps[last:]]

    def block(self, steps: list[Call | Block]) -> Block:
        self.blocks += 1
        calls = [call for step in steps for call in _within(step)]
        cap = self.cap(calls) if self.draw.random() < 0.7 else None
        counted = self.draw.random() < 0.3 and self.purpose == "tight"
        most = self.draw.randint(1, 3) if counted else None
        return Block(f"block {self.blocks}", cap, most, tuple(steps))

    def trial(self, at: int, lanes: list[Lane]) -> Trial:
        steps = [step for lane in lanes for step in lane.steps]
        calls = [call for step in steps for call in _within(step)]
        around = self.block(steps) if self.draw.random() < 0.3 else None
        if around is not None:
            around = Block(around.name, around.cap, around.max_calls, ())
        cap = self.cap(calls) if self.draw.random() < 0.5 else None
        return Trial(f"test {at}", cap, around, tuple(lanes))

    def call(self, asynchronous: bool) -> Call:
        draw = self.draw
        self.numbers += 1
        name = draw.choice(("chat", "chat", "chat", "text", "embed", "image"))
        words = draw.choice((1, 3, 8, 20))
        limit: int | None = draw.choice((1, 5, 20, 60))
        patient = self.purpose == "patient"
        if name == "chat" and draw.random() < 0.15 and not patient:
            limit = None
        ending: Ending | None = None
        if name in ("chat", "text") and draw.random() < 0.5:
            others: tuple[Ending, ...] = ("close", "drop", "unread", "keep")
            ending = "read" if patient or draw.random() < 0.5 else draw.choice(others)
        cancelled = asynchronous and not patient and draw.random() < 0.04
        prompt = draw.choice(("tell", "erzähle mir von der weiten See", "話", "again " * 30))
        return Call(
            number=self.numbers,
            kind=name,
            provider=draw.choice((None, *KINDS[name].providers)) if name == "chat" else None,
            prompt=f"{prompt} [[tokens={words}]]",
            words=words,
            limit=limit,
            guise=draw.choice((int, int, int, float, str)) if name == "chat" else int,
            n=2 if name == "chat" and draw.random() < 0.1 else 1,
            ending=ending,
            seen=draw.choice((1, 2, 4, 9)),
            cancelled_after=draw.choice((0.001, 0.01, 0.03)) if cancelled else None,
            empty=draw.random() < 0.15,
            pictures=self.pictures() if name == "chat" else (),
        )

    def pictures(self) -> tuple[Picture, ...]:
        brush = self.brush
        return tuple(
            Picture(*brush.choice(SIZES), brush.choice((0, 0, 1, 2)), brush.random() < 0.1)
            for _ in range(brush.choice((0, 0, 1, 1, 1, 2)))
        )

    def late_call(self) -> Call:
        """A call that no test waits for; its stream is not kept open."""
        call = self.call(asynchronous=False)
        return replace(call, ending="close") if call.ending == "keep" else call

    # --- what it costs

    def row(self, name: str, provider: str) -> Row:
        draw = self.draw
        tokens = {"input": self.rate(), "output": self.rate()}
        if name == "chat" and self.listed:
            return tuple(tokens.items())
        if name == "chat" and draw.random() < 0.2:
            return (*tokens.items(), ("cached", self.rate()))
        others: list[Row] = [(("call", draw.choice(("0.001", "0.0000000333"))),)]
        if provider == "hf-inference":
            others.append((("second", "0.00012"), ("max_seconds", "2")))
        own: dict[str, Row] = {
            "embed": (("input", tokens["input"]),),
            "image": (("image", draw.choice(("0.003", "0.0000000001"))),),
        }
        usual = own.get(name, tuple(tokens.items()))
        return usual if draw.random() < 0.7 else draw.choice(others)

    def rate(self) -> str:
        return self.draw.choice(("0.02", "0.0375", "0.07", "1.1111111", "15", "0.0000001"))

    def cap(self, calls: list[Call]) -> int:
        """What a budget of these calls may spend."""
        prices = dict(self.prices)
        bounds = [bound(call, prices) for call in calls]
        if self.purpose == "ample":
            return sum(bounds)
        if self.purpose == "patient":
            # What is read is in the bound; what is written is known.
            return sum(bound(c, prices, written=c.words) for c in calls) + max(bounds, default=0)
        return int(sum(bounds) * self.draw.choice((0, 0.02, 0.1, 0.3, 0.6, 1)))

    # --- what goes wrong

    def switches(self) -> tuple[tuple[str, Any], ...]:
        draw = self.draw
        switches: dict[str, Any] = {
            "routing": draw.choice(("policy", "round_robin", "pin:groq", "pin:together")),
            "cached_tokens": draw.choice((0, 0, 5)),
            "compute_seconds": COMPUTED_S,
            "lenient_numbers": True,
        }
        if self.purpose != "patient":
            switches |= {
                "provider_header": draw.random() < 0.85,
                "usage": draw.choice(("always", "always", "always", "never")),
                "stream_usage": draw.choice(
                    (
                        *("by_provider",) * 4,
                        *("on_request", "first_chunk", "finish_chunk", "every_chunk", "never"),
                        "rejects_options",
                    )
                ),
                "limit_names": draw.choice(("any",) * 6 + ("max_completion_tokens", "none")),
                "disconnect_bills": draw.choice(("generated", "full")),
            }
        return tuple(switches.items())

    def faults(self) -> tuple[tuple[tuple[str, Any], ...], ...]:
        draw = self.draw
        if draw.random() < 0.3:
            return ()
        kinds: list[dict[str, Any]] = [
            *({"status": status} for status in (400, 402, 422, 429, 500, 503)),
            {"status": 502, "applied": True},
            {"reset": "before"},
            {"reset": "after"},
            {"cut_stream_after": draw.randint(0, 9)},
            {"error_in_stream_after": draw.randint(0, 9)},
            # How long it took is billed by what the emulator says, not by any clock.
            {"garbage": True, "headers": {"x-compute-time": COMPUTED_S}},
            {"delay": 0.02},
        ]
        if self.purpose == "tight":  # each turn needs room of its own
            again = {"location": "?again=1"}
            kinds.append({"status": 307, "headers": again, "applied": True})
            kinds.append({"status": 308, "headers": again, "applied": False})
        if draw.random() < 0.15:
            slow = {"hang": SLOW_S, "then": draw.choice(("proceed", "close"))}
            kinds = [slow, *kinds]
            drawn = [slow, *draw.sample(kinds, draw.randint(0, 3))]
        else:
            drawn = draw.sample(kinds, draw.randint(1, 4))
        return tuple(
            (*each.items(), ("skip", draw.randint(0, 5)), ("times", draw.choice((1, 1, 2))))
            for each in drawn
        )


def bound(call: Call, prices: dict[str, Row], written: int | None = None) -> int:
    """More nano-USD than a call can cost, by the plainest count; ``written`` instead of its limit.

    Every byte of the prompt is a token, each time that it is read.
    """
    kind = KINDS[call.kind]
    rows = [dict(prices[f"{kind.model}:{provider}"]) for provider in kind.providers]
    read = len(call.prompt.encode()) + OVERHEAD + IMAGE * len(call.pictures)
    most = CONTEXT * 2 if call.limit is None else call.limit
    out = (most if written is None else min(written, most)) * call.n
    return max(_cost(row, read, out if call.kind in ("chat", "text") else 0) for row in rows)


def _cost(row: dict[str, str], read: int, written: int) -> int:
    each = {name: float(value) * 10**9 for name, value in row.items()}
    highest = max(each.get("input", 0), each.get("cached", 0))
    tokens = (highest * read + each.get("output", 0) * written) / 10**6
    once = each.get("call", 0) + each.get("image", 0) + 2 * each.get("second", 0)
    return int(tokens + once) + 2


def _within(step: Call | Block) -> list[Call]:
    return [step] if isinstance(step, Call) else list(step.calls())
