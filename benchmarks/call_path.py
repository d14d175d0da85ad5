"""How far one call walks through this package: files, moves between them, calls of functions.

The call is one `InferenceClient.chat_completion` whose `_inner_post` is a stub that answers at
once, as in `per_call.py`; one below a cap, and one that nothing caps. The first two calls of each
kind fill the caches, the third is measured. A call of a function counts where its file is part of
pytest_hfbudget, the emulator aside. Comprehensions are not counted: newer Pythons run them in
place. A move is a call in another file than the call before it.

    python benchmarks/call_path.py           the figures
    python benchmarks/call_path.py --steps   and each call, in order
    python benchmarks/call_path.py --json    the figures as JSON
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from huggingface_hub import InferenceClient

# Wherever this is run from: beside it, which is not a package.
sys.path.insert(0, str(Path(__file__).parent))

from per_call import MODEL, PRICES, QUESTION, answer_at_once

import pytest_hfbudget
from pytest_hfbudget import budget

PACKAGE = Path(pytest_hfbudget.__file__).parent
EMULATOR = PACKAGE / "emulator"
IN_PLACE = frozenset({"<listcomp>", "<setcomp>", "<dictcomp>"})


class Step(NamedTuple):
    """One call of a function of this package."""

    file: str
    function: str


class Walk(NamedTuple):
    """Every call of a function of this package while something ran."""

    steps: tuple[Step, ...]

    @property
    def figures(self) -> Mapping[str, int]:
        """What is compared: files, moves between files, calls."""
        files = [step.file for step in self.steps]
        moves = sum(1 for one, other in itertools.pairwise(files) if one != other)
        return {"files": len(set(files)), "moves": moves, "calls": len(files)}


def walk(run: Callable[[], object]) -> Walk:
    """Run a function, and note the calls of functions of this package."""
    steps: list[Step] = []

    def note(frame: FrameType, event: str, argument: object) -> None:
        if event != "call" or frame.f_code.co_name in IN_PLACE:
            return
        if file := _own_file(frame.f_code.co_filename):
            steps.append(Step(file, getattr(frame.f_code, "co_qualname", frame.f_code.co_name)))

    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(None)
    return Walk(tuple(steps))


def _own_file(name: str) -> str:
    file = Path(name)
    own = file.is_relative_to(PACKAGE) and not file.is_relative_to(EMULATOR)
    return str(file.relative_to(PACKAGE)) if own else ""


def walks() -> dict[str, Walk]:
    """The walk of a call below a cap, and of one without a cap, its accounting included."""
    client = InferenceClient(model=f"{MODEL}:novita", token="hf_none")  # noqa: S106 - none

    def call() -> None:
        client.chat_completion(QUESTION, max_tokens=50)

    with budget(1000, price_per_1k_tokens=PRICES):
        call()
        call()
        capped = walk(call)
    with budget(price_per_1k_tokens=PRICES) as block:

        def counted() -> object:
            call()
            return block.spent

        counted()
        return {"capped": capped, "uncapped": walk(counted)}


def main() -> None:
    """Print the figures."""
    stubbed: Any = InferenceClient
    stubbed._inner_post = answer_at_once
    found = walks()
    if "--json" in sys.argv:
        print(json.dumps({name: each.figures for name, each in found.items()}))
        return
    for name, each in found.items():
        print(f"{name:10}", *(f"{count:4} {what}" for what, count in each.figures.items()))
        if "--steps" in sys.argv:
            print(*(f"    {step.file:44}{step.function}" for step in each.steps), sep="\n")


if __name__ == "__main__":
    main()
