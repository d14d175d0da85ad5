"""This plugin beside other tools that cap spending, in the same experiments.

Each tool gets an environment of its own and the client that it covers. All of them talk to one
emulator over HTTP on loopback, whose invoice says what was sent and what it costs; the exit code of
pytest says whether the run noticed. A second table ends a run in twelve ways and asks the emulator
whether the endpoint still runs.

    python benchmarks/peers.py [--folder FOLDER] [--write] [NAME ...]

NAME is an experiment of the tables below, such as "loop"; none means all. `--write` puts the tables
into docs/compared.md. FOLDER keeps the environments for the next time, and what each run printed.
Needs redis-server (apt-get install redis-server), and a package index for the first time.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from pytest_hfbudget.emulator import Emulator

ROOT = Path(__file__).resolve().parents[1]
SUITES = ROOT / "benchmarks" / "peer_suites"
PAGE = ROOT / "docs" / "compared.md"
BEGIN, END = "<!-- benchmarks/peers.py writes from here -->", "<!-- to here -->"
COMMAND = "python benchmarks/peers.py --write"
OTHERS = "shekel, litellm, `SpendLimits`"  # none of them deals with endpoints
CLIENTS = ("openai==3.57.0", "redis==8.1.0")
PYTEST = ("pytest==9.2.0", "pytest-xdist==3.8.0")

CAP_USD = "0.01"
CAP_NANO = 10_000_000
INPUT, OUTPUT = "1", "30"  # USD per million tokens
TOKENS, MAX_TOKENS = 32, 40  # so a call costs a tenth of the cap, and could cost a little more
QUESTION = f"Say something. [[tokens={TOKENS}]]"
PRICED, UNPRICED = "acme/priced", "acme/unpriced"
ENDPOINT = "acme/llm"
PASSED, FAILED = 0, 1
RUN_S, PAUSE_S, START_S = 180.0, 5.0, 60.0


@dataclass(frozen=True)
class Tool:
    """A column: `module` is the file that has its calls, `packages` what its environment has."""

    title: str
    module: str
    environment: str
    packages: tuple[str, ...]
    release_of: str
    options: tuple[str, ...] = ()


TOOLS = (
    Tool(
        "pytest-hfbudget",
        "tool_hfbudget",
        "hfbudget",
        ("-e", f"{ROOT}[xdist]", *CLIENTS),
        "pytest-hfbudget",
        (f"--hf-session-budget={CAP_USD}",),
    ),
    Tool("shekel", "tool_shekel", "shekel", ("shekel==1.2.0", *CLIENTS), "shekel"),
    Tool("`litellm.max_budget`", "tool_litellm", "litellm", ("litellm==1.110.2",), "litellm"),
    Tool(
        "litellm's `BudgetManager`",
        "tool_budgetmanager",
        "litellm",
        ("litellm==1.110.2",),
        "litellm",
    ),
    Tool(
        "`SpendLimits` of pydantic-ai-harness",
        "tool_spendlimits",
        "harness",
        ("pydantic-ai-harness==0.62.0", *CLIENTS),
        "pydantic-ai-harness",
    ),
)


@dataclass(frozen=True)
class Experiment:
    """A row of the first table: which test, and what the emulator and the tool are told."""

    name: str
    what: str
    test: str
    delay_s: float = 0.0
    switches: dict[str, Any] = field(default_factory=dict)
    priced: bool = True
    several: bool = False
    options: tuple[str, ...] = ()


EXPERIMENTS = (
    Experiment("few", "three calls, within the cap", "test_few"),
    Experiment("loop", "a loop", "test_loop"),
    Experiment("swallowed", "a loop that swallows every error", "test_swallowing"),
    Experiment("threads", "8 threads", "test_threads", delay_s=0.2),
    Experiment("pool", "8 threads, the cap set outside of them", "test_plain_threads", delay_s=0.2),
    Experiment("tasks", "8 tasks", "test_tasks", delay_s=0.2),
    Experiment(
        "asked",
        "streams with usage only when asked",
        "test_streams",
        switches={"stream_usage": "on_request"},
    ),
    Experiment(
        "streams", "streams without usage", "test_streams", switches={"stream_usage": "never"}
    ),
    Experiment("unpriced", "a model without a known price", "test_loop", priced=False),
    Experiment(
        "xdist",
        "two xdist workers",
        "test_one_of_many",
        delay_s=0.2,
        several=True,
        options=("-n2",),
    ),
    Experiment("children", "4 child processes", "test_children", delay_s=0.2, several=True),
)


@dataclass(frozen=True)
class Ending:
    """A row of the second table: what the test does, which signals follow, how often."""

    name: str
    what: str
    does: str
    signals: tuple[int, ...] = ()
    options: tuple[str, ...] = ()


ENDINGS = (
    Ending("pass", "all tests pass", "pass"),
    Ending("fail", "a test fails", "fail"),
    Ending("x", "a test fails under `-x`", "fail", options=("-x",)),
    Ending("ctrl-c", "Ctrl-C", "wait", (signal.SIGINT,)),
    Ending("ctrl-c-twice", "Ctrl-C twice", "wait", (signal.SIGINT, signal.SIGINT)),
    Ending("sigterm", "SIGTERM", "wait", (signal.SIGTERM,)),
    Ending("sighup", "SIGHUP", "wait", (signal.SIGHUP,)),
    Ending("sigkill", "SIGKILL", "wait", (signal.SIGKILL,)),
    Ending("exit", "`os._exit` in a test", "exit"),
    Ending("segfault", "a segfault in a test", "segfault"),
    Ending("worker", "an xdist worker is killed", "die", options=("-n2",)),
    Ending("controller", "xdist's controller is killed", "wait", (signal.SIGKILL,), ("-n2",)),
)
PAUSE_TAKES_S, BETWEEN_SIGNALS_S = 1.0, 0.3


@dataclass(frozen=True)
class Bench:
    """Where the experiments run."""

    folder: Path
    emulator: Emulator
    redis: str

    def python(self, tool: Tool) -> Path:
        """The interpreter of a tool's environment, which is made if there is none yet."""
        home = self.folder / "environments" / tool.environment
        python, done = home / "bin" / "python", home / "installed"
        if not done.exists():
            run = [sys.executable, "-m", "venv", "--clear", str(home)]
            subprocess.run(run, check=True)
            install = [str(python), "-m", "pip", "install", "-q", *PYTEST, *tool.packages]
            subprocess.run(install, check=True, stdout=sys.stderr)
            done.touch()
        return python

    def release(self, tool: Tool) -> str:
        """The release that is installed."""
        code = "import sys, importlib.metadata as m; print(m.version(sys.argv[1]))"
        command = [str(self.python(tool)), "-c", code, tool.release_of]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def start(
        self, tool: Tool, name: str, files: dict[str, str], options: Iterable[str], **told: str
    ) -> subprocess.Popen[bytes]:
        """A run of pytest in a folder of its own; its output is kept there in `out`."""
        folder = self.folder / f"{name}-{tool.module}-{os.urandom(4).hex()}"
        folder.mkdir()
        for target, source in files.items():
            (folder / target).write_text((SUITES / source).read_text())
        mine = ("HFBUDGET_", "PYTEST_", "PEERS_", "HF_", "OPENAI_", "LITELLM_")
        kept = {key: value for key, value in os.environ.items() if not key.startswith(mine)}
        environment = {
            **kept,
            "PYTHONPATH": str(folder),
            "HF_TOKEN": "hf_peers",
            "HFBUDGET_EMULATOR": self.emulator.url,
            "HFBUDGET_STATE_DIR": str(self.folder / "state"),
            "HFBUDGET_CACHE_DIR": str(self.folder / "state"),
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "PEERS_REDIS": self.redis,
            "PEERS_CAP": CAP_USD,
            "PEERS_ROUTER": f"{self.emulator.router}/v1",
            "PEERS_QUESTION": QUESTION,
            "PEERS_MAX_TOKENS": str(MAX_TOKENS),
            **{f"PEERS_{key}": value for key, value in told.items()},
        }
        with (folder / "out").open("wb") as out:
            return subprocess.Popen(
                [str(self.python(tool)), "-m", "pytest", "-q", "-p", "no:cacheprovider", *options],
                cwd=folder,
                env=environment,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def spent(self, experiment: Experiment, tool: Tool) -> str:
        """One cell of the first table."""
        prices = {"input": float(INPUT), "output": float(OUTPUT)}
        offers = {PRICED: {"pricing": prices}, UNPRICED: {"price": prices}}
        models = [
            {"id": name, "providers": [{"provider": "novita", "context_length": 8192, **offer}]}
            for name, offer in offers.items()
        ]
        switches = {"answer_delay_s": experiment.delay_s, **experiment.switches}
        self.emulator.client.reset(models=models, switches=switches)
        files = ["common.py", "tool_litellm.py", "test_money.py"]
        process = self.start(
            tool,
            experiment.name,
            {**{name: name for name in files}, "tool.py": f"{tool.module}.py"},
            (*tool.options, *experiment.options, f"test_money.py::{experiment.test}"),
            MODEL=PRICED if experiment.priced else UNPRICED,
            PRICES=f"{INPUT} {OUTPUT}" if experiment.priced else "",
            SEVERAL="1" if experiment.several else "",
        )
        code = process.wait(RUN_S)
        if code not in (PASSED, FAILED):
            said = next(self.folder.glob(f"{experiment.name}-{tool.module}-*/out")).read_text()
            raise RuntimeError(f"{experiment.name} of {tool.title}: pytest exited {code}:\n{said}")
        invoice = self.emulator.client.invoice()
        calls = sum(row["billed"] in ("full", "generated") for row in invoice["calls"])
        share = f"{invoice['calls_nano_usd'] / CAP_NANO:.0%}"
        over = invoice["calls_nano_usd"] > CAP_NANO
        verdict = "passes" if code == PASSED else "fails"
        sent = "1 call" if calls == 1 else f"{calls} calls"
        return f"{sent}, {f'**{share}**' if over else share}, {verdict}"

    def left(self, ending: Ending, tool: Tool, plugin: bool) -> str:
        """One cell of the second table: what is with the endpoint after such an end."""
        self.emulator.client.reset()
        self.emulator.client.add_endpoint(ENDPOINT, initializing_s=0.2)
        files = {"test_ending.py": "test_ending.py"}
        if not plugin:
            files["conftest.py"] = "fixture_conftest.py"
        process = self.start(
            tool,
            ending.name,
            files,
            (*(() if plugin else ("-p", "no:hfbudget")), *ending.options),
            ENDPOINT=ENDPOINT,
            ENDING=ending.does,
            ENDPOINTS_API=self.emulator.endpoints_api,
        )
        self.emulator.client.wait_for(op="chat", phase="answered", timeout=START_S)
        self.emulator.client.add_fault("pause", delay=PAUSE_TAKES_S)
        for number in ending.signals:
            process.send_signal(number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(BETWEEN_SIGNALS_S)
        process.wait(RUN_S)
        deadline = time.monotonic() + PAUSE_S
        while (state := self.endpoint()) != "paused" and time.monotonic() < deadline:
            time.sleep(0.05)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        return state if state == "paused" else f"**{state}**"

    def endpoint(self) -> str:
        """The state that the emulator's bill tells."""
        return str(self.emulator.client.invoice()["endpoints"][0]["state"])


@contextmanager
def bench(kept: Path | None) -> Iterator[Bench]:
    """An emulator and a Redis server that end with this block."""
    sys.path.insert(0, str(ROOT / "tests"))
    from redis_server import RedisServer

    with tempfile.TemporaryDirectory(prefix="peers-") as name:
        folder = (kept or Path(name)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        redis = RedisServer(folder)
        redis.start()
        try:
            with Emulator() as emulator:
                yield Bench(folder, emulator, redis.url)
        finally:
            redis.close()


def row(*cells: str) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def money_table(on: Bench, chosen: Iterable[Experiment]) -> Iterator[str]:
    """Experiments by tools, as lines of Markdown."""
    yield row("", *(f"{tool.title} {on.release(tool)}" for tool in TOOLS))
    yield "|---" * (len(TOOLS) + 1) + "|"
    for experiment in chosen:
        yield row(experiment.what, *(on.spent(experiment, tool) for tool in TOOLS))


def endings_table(on: Bench, chosen: Iterable[Ending]) -> Iterator[str]:
    """Endings by who has the endpoint, as lines of Markdown."""
    yield row("", TOOLS[0].title, "a session fixture: resume, yield, pause", OTHERS)
    yield "|---|---|---|---|"
    for ending in chosen:
        cells = (on.left(ending, TOOLS[0], plugin) for plugin in (True, False))
        yield row(ending.what, *cells, "not covered")


def report(on: Bench, names: list[str]) -> Iterator[str]:
    """Both tables, as far as they have one of these experiments, or all of them."""
    experiments = [one for one in EXPERIMENTS if not names or one.name in names]
    endings = [one for one in ENDINGS if not names or one.name in names]
    if experiments:
        yield from money_table(on, experiments)
        yield ""
    if endings:
        yield from endings_table(on, endings)
        yield ""
    python = ".".join(map(str, sys.version_info[:3]))
    yield f"Made by `{COMMAND}` on {datetime.now(timezone.utc):%Y-%m-%d}, with Python {python}."


def main() -> int:
    """Print both tables; with `--write`, put them into the page as well."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, help="keeps environments and output")
    parser.add_argument("--write", action="store_true", help=f"writes {PAGE.name}")
    every = [one.name for one in (*EXPERIMENTS, *ENDINGS)]
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(every))
    given = parser.parse_args()
    if unknown := set(given.names) - set(every):
        parser.error(f"no experiment {', '.join(sorted(unknown))}; there are {', '.join(every)}")
    if not (shutil.which("redis-server") or shutil.which("valkey-server")):
        parser.error("redis-server is not installed: apt-get install redis-server")
    if given.write and given.names:
        parser.error("--write needs all experiments: leave out the names")
    lines = []
    with bench(given.folder) as on:
        for line in report(on, given.names):
            print(line, flush=True)
            lines.append(line)
    if given.write:
        head, begin, rest = PAGE.read_text("utf-8").partition(BEGIN)
        _, end, tail = rest.partition(END)
        PAGE.write_text("\n".join((head + begin, "", *lines, "", end + tail)), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
