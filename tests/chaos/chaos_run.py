"""Does what a plan says, with the real huggingface_hub, over real HTTP, in threads and tasks."""

from __future__ import annotations

import asyncio
import gc
import json
import struct
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from contextvars import Context
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.request import urlopen
from weakref import ref

from chaos_plan import CONTEXT, KINDS, PAID, Block, Call, Lane, Picture, Plan, Trial
from huggingface_hub import AsyncInferenceClient, InferenceClient
from retrying_transport import retrying

from pytest_hfbudget import BudgetExceededError, budget
from pytest_hfbudget.emulator import Emulator
from pytest_hfbudget.ledger import SESSION, Scope
from pytest_hfbudget.ledger.ledger import Ledger
from pytest_hfbudget.metering.bounds import TokenCounts
from pytest_hfbudget.metering.budget_context import BudgetContext, RunningTest
from pytest_hfbudget.metering.instrumentation import Addresses
from pytest_hfbudget.metering.meter import Meter
from pytest_hfbudget.metering.prompts import Fact, Tokenizer
from pytest_hfbudget.metering.runtime import Runtime
from pytest_hfbudget.money import to_usd
from pytest_hfbudget.pricing.book import PriceBook
from pytest_hfbudget.pricing.catalogue import Catalogue
from pytest_hfbudget.pricing.table import PriceTable

PATIENCE_S = 60
# As the emulator counts; less, the longer a text is; and a token for each text.
TOKENIZERS: dict[str, Tokenizer | None] = {
    "none": None,
    "right": lambda text: -(-len(text.encode()) // 4),
    "half": lambda text: len(text.encode()) // 8,
    "one": lambda text: 1,
}
COLLECT_S = 2.0


@dataclass(frozen=True)
class Outcome:
    """How a call ended for its caller: answered, left, refused, or failed."""

    call: Call
    word: str
    error: Exception | None = None


@dataclass
class Run:
    """A plan, and what came of it for those who called."""

    plan: Plan
    runtime: Runtime
    ledger: Ledger
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def session_id(self) -> str:
        """What its calls are billed to."""
        return f"hfbudget-{self.plan.seed}"

    def token(self, call: Call) -> str:
        """What tells this call's requests apart in the emulator's log."""
        return f"hf_chaos_{self.plan.seed}_{call.number}"


def perform(plan: Plan, emulator: Emulator, known: Iterable[Fact] = ()) -> Run:
    """Do it all, until everything is quiet; ``known`` was learned in an earlier run."""
    emulator.client.reset(models=_models(plan), switches=dict(plan.switches), faults=_faults(plan))
    with (
        _metered(plan, emulator, tuple(known)) as run,
        retrying() if plan.retries else nullcontext(),
    ):
        for trial in plan.trials:
            _try(run, trial)
        _at_once([partial(_without_loop, Walk(run).walk((call,))) for call in plan.late])
        run.runtime.meter.settle_all()
    return run


@contextmanager
def _metered(plan: Plan, emulator: Emulator, known: tuple[Fact, ...]) -> Iterator[Run]:
    with urlopen(f"{emulator.router}/v1/models") as answer:
        catalogue = Catalogue.parse(json.load(answer), read_at=0.0, origin=emulator.router)
    rows = {name: dict(row) for name, row in plan.prices if not _in_catalogue(plan, name)}
    book = PriceBook(PriceTable.parse(rows, "prices.toml"), load_catalogue=lambda: catalogue)
    session_id = f"hfbudget-{plan.seed}"
    budgets = BudgetContext(Scope(SESSION, "session budget", plan.cap), session_id=session_id)
    tokenizer = TOKENIZERS[plan.tokenizer]
    counts = TokenCounts(
        emulator.router,
        lambda model: [fact for fact in known if fact.model == model],
        lambda model: tokenizer,
        plan.image_tokens,
    )
    meter = Meter(
        Ledger(),
        book,
        budgets,
        router=emulator.router,
        hold_wait=plan.hold_wait,
        counts=counts,
    )
    addresses = Addresses(emulator.router, emulator.endpoints_api, emulator.hub)
    runtime = Runtime(meter, addresses=addresses)
    runtime.acquire()
    try:
        yield Run(plan, runtime, meter.ledger)  # type: ignore[arg-type]
    finally:
        runtime.release()


def _try(run: Run, trial: Trial) -> None:
    """One test, from its start to the moment when what it has left open is settled."""
    meter = run.runtime.meter
    scopes = (Scope(f"test:{trial.name}", trial.name, trial.cap),)
    meter.budgets.test = RunningTest(trial.name, scopes)
    with ExitStack() as stack:
        if trial.around is not None:
            stack.enter_context(_budget(trial.around))
        _at_once([*_threads(run, trial), *_loops(run, trial)])
    gc.collect()
    meter.settle_open(trial.name)
    meter.budgets.test = None


def _threads(run: Run, trial: Trial) -> Iterator[Callable[[], None]]:
    for lane in trial.lanes:
        if not lane.asynchronous:
            yield lambda lane=lane: _without_loop(Walk(run).all(lane))  # type: ignore[misc]


def _loops(run: Run, trial: Trial) -> Iterator[Callable[[], None]]:
    lanes = [lane for lane in trial.lanes if lane.asynchronous]

    async def together() -> None:
        await asyncio.gather(*(WalkOfTask(run, alone=len(lanes) == 1).all(lane) for lane in lanes))

    if lanes:
        yield lambda: asyncio.run(asyncio.wait_for(together(), PATIENCE_S))


def _at_once(work: list[Callable[[], None]]) -> None:
    """Plain threads, which carry no context; what goes wrong in one is raised here."""
    errors: list[BaseException] = []

    def kept(each: Callable[[], None]) -> None:
        try:
            each()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=kept, args=(each,), daemon=True) for each in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive(), "a thread hangs"
    for error in errors:
        raise error


def _without_loop(steps: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine that never waits for anything, in a thread without a loop."""
    try:
        steps.send(None)
    except StopIteration:
        return
    raise AssertionError("a thread has nothing to wait for")


class Walk:
    """One thread on its way through the steps of its lane; written once for tasks, too."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.kept: list[Any] = []
        self.last: Callable[[], Any] = lambda: None  # the last stream, if it is still there

    async def all(self, lane: Lane) -> None:
        """Every step; then let go of the streams that were kept."""
        await self.walk(lane.steps)
        self.kept.clear()

    async def walk(self, steps: tuple[Call | Block, ...]) -> None:
        for step in steps:
            if isinstance(step, Call):
                self.run.outcomes.append(await self.outcome(step))
            else:
                with _budget(step):
                    await self.walk(step.steps)

    async def outcome(self, call: Call) -> Outcome:
        # A block of its own shows what just this call was charged.
        with budget(name=call.name, on_exceed="raise"):
            try:
                return Outcome(call, await self.use(call))
            except BudgetExceededError as error:
                return Outcome(call, "refused", error.with_traceback(None))
            except ImportError:
                return Outcome(call, "answered")  # and paid for, though without numpy or PIL
            except Exception as error:
                return Outcome(call, "failed", error.with_traceback(None))
            finally:
                if call.ending in ("drop", "unread"):
                    self.collect()

    def collect(self) -> None:
        """Have the last stream collected: `gc.collect` does nothing while another thread does."""
        ends = time.monotonic() + COLLECT_S
        while self.last() is not None and time.monotonic() < ends:
            gc.collect()
            threading.Event().wait(0.001)

    async def use(self, call: Call) -> str:
        client = self.client(InferenceClient, call)
        answer = Context().run(ask, client, call) if call.empty else ask(client, call)
        if call.ending is None:
            return "answered"
        if call.ending == "read":
            list(answer)
            return "answered"
        self.last = ref(answer)
        if call.ending != "unread":
            for _ in range(call.seen):
                next(answer, None)
        if call.ending == "close":
            answer.close()
        if call.ending == "keep":
            self.kept.append((client, answer))
        return "left"

    def client(self, kind: Any, call: Call) -> Any:
        model = KINDS[call.kind].model
        provider = call.provider or ("auto" if call.kind == "chat" else "hf-inference")
        token, timeout = self.run.token(call), self.run.plan.timeout
        return kind(model=model, provider=provider, token=token, timeout=timeout)


class WalkOfTask(Walk):
    """One task on its way.

    Args:
        alone: whether its loop has no other. An empty context might lie in the blocks of any.
    """

    def __init__(self, run: Run, *, alone: bool) -> None:
        super().__init__(run)
        self.empties = alone and sys.version_info >= (3, 11)

    async def use(self, call: Call) -> str:
        async with self.client(AsyncInferenceClient, call) as client:
            asking = ask(client, call)
            if call.empty and self.empties:
                create: Any = asyncio.get_running_loop().create_task  # no context before 3.11
                asking = create(asking, context=Context())
            asked = asyncio.wait_for(asking, call.cancelled_after)
            return await self.end(call, client, await asked)

    async def end(self, call: Call, client: Any, answer: Any) -> str:
        if call.ending is None:
            return "answered"
        if call.ending == "read":
            async for _ in answer:
                pass
            return "answered"
        self.last = ref(answer)
        if call.ending != "unread":
            for _ in range(call.seen):
                await anext(answer, None)
        if call.ending == "close":
            await answer.aclose()
        if call.ending == "keep":
            self.kept.append((client, answer))
        return "left"


def ask(client: Any, call: Call) -> Any:
    """Make the call; of an async client, the coroutine of it."""
    streamed = call.ending is not None
    if call.kind == "chat":
        said: Any = call.prompt
        if call.pictures:
            said = [*map(shown, call.pictures), {"type": "text", "text": call.prompt}]
        messages = [{"role": "user", "content": said}]
        extra = {"extra_body": {"n": call.n}} if call.n > 1 else {}
        return client.chat_completion(
            messages, max_tokens=call.given_limit, stream=streamed, **extra
        )
    if call.kind == "text":
        return client.text_generation(call.prompt, max_new_tokens=call.limit, stream=streamed)
    if call.kind == "embed":
        return client.feature_extraction(call.prompt)
    return client.text_to_image(call.prompt)


def shown(picture: Picture) -> dict[str, Any]:
    """The part of a message that shows a picture."""
    head = struct.pack(">8sI4sIIB", b"\x89PNG\r\n\x1a\n", 13, b"IHDR", *picture[:3])
    url = f"data:image/png;base64,{b64encode(head).decode()}"
    if picture.linked:
        url = f"https://example.org/{picture.shade}.png"
    return {"type": "image_url", "image_url": {"url": url}}


def _budget(block: Block) -> budget:
    cap = None if block.cap is None else to_usd(block.cap)
    return budget(cap, name=block.name, max_calls=block.max_calls, on_exceed="raise")


def _in_catalogue(plan: Plan, name: str) -> bool:
    return plan.listed and name.startswith(KINDS["chat"].model)


def _models(plan: Plan) -> list[dict[str, Any]]:
    prices, models = dict(plan.prices), []
    for kind in KINDS.values():
        offers: list[dict[str, Any]] = []
        for provider in kind.providers:
            name = f"{kind.model}:{provider}"
            row = {k: v for k, v in prices[name] if k != "max_seconds"}
            said = "pricing" if _in_catalogue(plan, name) else "price"
            offers.append({"provider": provider, said: row, "context_length": CONTEXT})
        models.append({"id": kind.model, "task": kind.task, "providers": offers})
    return models


def _faults(plan: Plan) -> list[dict[str, Any]]:
    script = []
    for fault in plan.faults:
        action = dict(fault)
        skip, times = action.pop("skip"), action.pop("times")
        script.append({"match": {"path": PAID}, "skip": skip, "times": times, "action": action})
    return script
