"""How much of a cap can be spent before the first call is refused.

Whole runs of pytest against the emulator, which counts a token for every four bytes. Each suite
makes calls one after the other until its session budget refuses one; the cap is what so many of
these calls cost by the emulator's own invoice. The columns:

- *first run*: nothing is known when it begins;
- *second run*: the usage log is that of a run in which a larger cap held all of these calls;
- *tokenizer*: a first run, with the model's tokenizer in the Hugging Face cache.

The rows: prompts that are repeated, so that the first call is known to all later ones; prompts that
differ; an agent whose history grows; images of 64 x 64 pixels for a model that is not known, which
makes 85 tokens of each; the same with `hf_image_tokens = 128`; the same images, and some of 640 x
480 pixels, for Qwen3-VL, which makes 66 and 302 tokens of them. The last two rows leave the
provider to the router, which has three, of which the most expensive costs 2.5 times as much as the
one that answers.

Last come eight threads that call at the same time, as soon as their prompt is known: how long they
take under a cap of what all their calls cost, over how long they take without one.

    python benchmarks/utilisation.py [CALLS ...]        (10 30 100)
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pytest_hfbudget.emulator import Emulator
from pytest_hfbudget.settings import SETTINGS

MODEL, QWEN = "bench/chat", "Qwen/Qwen3-VL-8B-Instruct"
OFFERS = {"novita": "0.2 0.3", "groq": "0.2 0.2", "together": "0.5 0.5"}
CONTEXT = 131_072
CAPS = (10, 30, 100)
AMPLE = 10**9  # nano-USD
ROWS = {
    "short, repeated": "short",
    "short, different": "short different",
    "long, repeated": "long",
    "long, different": "long different",
    "agent": "agent",
    "images, repeated": "image",
    "images, different": "image different",
    "images, repeated, stated": "image stated",
    "images, different, stated": "image different stated",
    "Qwen3-VL, repeated": "image qwen",
    "Qwen3-VL, different": "image qwen different",
    "Qwen3-VL, larger, repeated": "image qwen larger",
    "Qwen3-VL, larger, different": "image qwen larger different",
    "short, repeated, any provider": "short auto",
    "long, repeated, any provider": "long auto",
}
SUITE = """
import base64, os, struct, zlib
from huggingface_hub import InferenceClient
from pytest_hfbudget import BudgetExceededError

KIND = os.environ["KIND"]
TOOL = {"type": "function", "function": {"name": "look", "description": "Looks something up.",
        "parameters": {"type": "object", "properties": {"what": {"type": "string"}}}}}


def picture(shade, width, height):
    def chunk(kind, data):
        end = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + end

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress((b"\\0" + bytes([shade]) * width) * height))
    data = b"\\x89PNG\\r\\n\\x1a\\n" + head + pixels + chunk(b"IEND", b"")
    return {"url": "data:image/png;base64," + base64.b64encode(data).decode()}


def asked(step):
    number = f"{step} " if "different" in KIND else ""
    text = f"{number}Name the boats of this harbour, please. [[tokens=50]]"
    if "long" in KIND:
        text = f"{number}{'The sun rose over a calm sea and all boats were out. ' * 80}" + text
    if "image" in KIND:
        size = (640, 480) if "larger" in KIND else (64, 64)
        shown = {"type": "image_url", "image_url": picture(step if number else 0, *size)}
        text = [shown, {"type": "text", "text": text}]
    return {"role": "user", "content": text}


def test_spends_until_it_is_refused():
    provider = "auto" if "auto" in KIND else "groq"
    client = InferenceClient(os.environ["MODEL"], provider=provider, token="hf_of_a_benchmark")
    history = [{"role": "system", "content": "You look after the boats of a harbour."}]
    for step in range(int(os.environ["CALLS"])):
        agent = "agent" in KIND
        history = [*history, asked(step)] if agent else [asked(step)]
        extra = {"tools": [TOOL]} if agent else {}
        try:
            answer = client.chat_completion(history, max_tokens=50, **extra)
        except BudgetExceededError as refusal:
            print(refusal)
            return
        history += [{"role": "assistant", "content": answer.choices[0].message.content}]
"""


THREADS = """
import os, time
from concurrent.futures import ThreadPoolExecutor
from huggingface_hub import InferenceClient

SAY = [{"role": "user", "content": "Name the boats of this harbour, please. [[tokens=50]]"}]


def call(_):
    client = InferenceClient(model="bench/chat", provider="groq", token="hf_of_a_benchmark")
    client.chat_completion(SAY, max_tokens=50)


def test_eight_threads():
    for _ in range(2):
        call(0)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(call, range(8)))
        start = time.monotonic()
        list(pool.map(call, range(int(os.environ["CALLS"]))))
    with open("seconds", "w") as file:
        file.write(str(time.monotonic() - start))
"""
ROUNDS, AT_ONCE = 5, 160


def main() -> None:
    """Print a table for each cap."""
    sizes = [int(each) for each in sys.argv[1:]] or CAPS
    with Emulator() as emulator, tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "test_suite.py").write_text(SUITE)
        (place / "pytest.ini").write_text("[pytest]\n")
        bench = Bench(emulator, place)
        for calls in sizes:
            print(f"\na cap of {calls} calls' worth\n")
            print(f"{'':30}{'first run':>12}{'second run':>12}{'tokenizer':>12}")
            for row, kind in ROWS.items():
                cells = "".join(f"{share:>12}" for share in bench.shares(kind, calls))
                print(f"{row:30}{cells}", flush=True)
        (place / "test_suite.py").write_text(THREADS)
        cap = bench.run("threads", AT_ONCE, None, bench.fresh())
        free, capped = [], []
        for _ in range(ROUNDS):
            for seconds, most in ((free, None), (capped, cap)):
                bench.run("threads", AT_ONCE, most, bench.fresh())
                seconds.append(float((place / "seconds").read_text()))
        ratio = min(capped) / min(free)
        print(f"\neight threads, {AT_ONCE} calls: {ratio:.2f} times as long as without a cap")


class Bench:
    """Runs the suite, each time in front of an emulator that has forgotten everything."""

    def __init__(self, emulator: Emulator, place: Path) -> None:
        self.emulator, self.place, self.number = emulator, place, 0

    def shares(self, kind: str, calls: int) -> Iterator[str]:
        """The share of the cap that was spent in each column."""
        cap = self.run(kind, calls, None, self.fresh())
        yield f"{self.run(kind, calls, cap, self.fresh()) / cap:.0%}"
        state = self.fresh()
        self.run(kind, calls, AMPLE, state)
        yield f"{self.run(kind, calls, cap, state) / cap:.0%}"
        if "tokenizer" not in SETTINGS:
            yield "-"
            return
        models = self.place / "hub"
        if not models.exists():
            keep_tokenizer(models)
        cached = {"HFBUDGET_TOKENIZER": "cached", "HF_HUB_CACHE": str(models)}
        yield f"{self.run(kind, calls, cap, self.fresh(), cached) / cap:.0%}"

    def fresh(self) -> Path:
        """A folder for what runs keep."""
        self.number += 1
        return self.place / f"state-{self.number}"

    def run(
        self,
        kind: str,
        calls: int,
        cap: int | None,
        state: Path,
        more: dict[str, str] | None = None,
    ) -> int:
        """Nano-USD on the emulator's invoice after one run."""
        offers = [
            {
                "provider": name,
                "pricing": dict(zip(("input", "output"), price.split(), strict=True)),
                "context_length": CONTEXT,
                "throughput": 600.0 if name == "groq" else 60.0,
            }
            for name, price in OFFERS.items()
        ]
        model = QWEN if "qwen" in kind else MODEL
        switches = {
            "answer_delay_s": 0.05 if kind == "threads" else 0.0,
            "image_tokens": "qwen3_vl" if "qwen" in kind else "flat",
        }
        self.emulator.client.reset(models=[{"id": model, "providers": offers}], switches=switches)
        environ = {
            **os.environ,
            "KIND": kind,
            "MODEL": model,
            "CALLS": str(calls),
            "HFBUDGET_ROUTER": self.emulator.router,
            "HF_ENDPOINT": self.emulator.hub,
            "HFBUDGET_STATE_DIR": str(state),
            "HFBUDGET_CACHE_DIR": str(state / "cache"),
            "HF_HOME": str(self.place / "home"),
            **({"HFBUDGET_IMAGE_TOKENS": "128"} if "stated" in kind else {}),
            **(more or {}),
        }
        budget = [] if cap is None else [f"--hf-session-budget={cap / 10**9:.9f}"]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-rN", "-p", "no:cacheprovider", *budget],
            cwd=self.place,
            env=environ,
            capture_output=True,
            text=True,
            check=False,
        )
        spent = int(self.emulator.client.invoice()["calls_nano_usd"])
        if (not spent and cap is None) or (cap is not None and spent > cap):
            raise SystemExit(f"{kind}: {spent} of {cap} spent\n{done.stdout}{done.stderr}")
        return spent


def keep_tokenizer(cache: Path) -> None:
    """Put a tokenizer that counts as the emulator does where huggingface_hub keeps the model's."""
    from tokenizers import Regex, Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Split

    tokenizer = Tokenizer(WordLevel({"?": 0}, unk_token="?"))  # noqa: S106 - a token of text
    tokenizer.pre_tokenizer = Split(Regex(r"[\s\S]{1,4}"), "isolated")
    folder = cache / f"models--{MODEL.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    tokenizer.save(str(snapshot / "tokenizer.json"))


if __name__ == "__main__":
    main()
