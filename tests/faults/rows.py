"""What can go wrong, numbered; tests name the rows that they try, docs/endings.md shows them.

``python tests/faults/rows.py MEASURED.jsonl > docs/endings.md`` writes that page from what a run
with ``FAULTS_TABLE=MEASURED.jsonl`` has measured.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

HOOKS, REAPER, SECOND = "hooks", "reaper", "its standbys"
RUN, SWEEP, SERVER, NOTHING = "the run itself", "sweep", "the server", "nothing to pause"


class Row(NamedTuple):
    """One thing that goes wrong, and what covers it."""

    what: str
    by: str


ROWS = {
    1: Row("all pass, some fail, nothing is collected", HOOKS),
    2: Row("Ctrl-C in a test", HOOKS),
    3: Row("Ctrl-C while the endpoint comes up", HOOKS),
    4: Row("killed between the journal's intent and the resume", REAPER),
    5: Row("the answer to the resume is lost, or takes effect after the run has died", REAPER),
    6: Row("Ctrl-C twice, three times, eight times, while the pause takes long", REAPER),
    7: Row("SIGTERM, SIGHUP, SIGQUIT", REAPER),
    8: Row("SIGKILL", REAPER),
    9: Row("SIGKILL of the process group, of the session", REAPER),
    10: Row("SIGKILL of the whole process tree", REAPER),
    11: Row("a cancelled GitHub job: SIGINT, SIGTERM, then the tree is killed", REAPER),
    12: Row("GitHub's sweep of orphans by RUNNER_TRACKING_ID", REAPER),
    13: Row("os._exit, abort or a segfault in a test", REAPER),
    14: Row("pytest-timeout, by thread and by signal", f"{HOOKS}, {REAPER}"),
    15: Row("out of memory: MemoryError, or the kernel's killer", f"{HOOKS}, {REAPER}"),
    16: Row("the stack overflows", f"{HOOKS}, {REAPER}"),
    17: Row("another plugin raises in sessionfinish or unconfigure", f"{HOOKS}, {REAPER}"),
    18: Row("an internal error of pytest", HOOKS),
    19: Row("pytest.exit, UsageError, -x, --maxfail", HOOKS),
    20: Row("a test ignores signals, or swallows KeyboardInterrupt", f"{HOOKS}, {REAPER}"),
    21: Row("a test removes its directory, closes descriptors, empties the environment", REAPER),
    22: Row("a test replaces sleep, sockets, threads, clocks; the network is blocked", REAPER),
    23: Row("a forked child outlives the run, with every descriptor", REAPER),
    24: Row("an xdist worker dies", HOOKS),
    25: Row("all xdist workers die", HOOKS),
    26: Row("the xdist controller is killed while workers run", REAPER),
    27: Row("Ctrl-C to the xdist controller, once and twice", HOOKS),
    28: Row("each --dist mode; without xdist", HOOKS),
    29: Row("the reaper is killed; with its standbys; then the run too", f"{SECOND}, {RUN}"),
    30: Row("no process, descriptor, disk or system call for a reaper", NOTHING),
    31: Row("the reaper hangs before it is ready", NOTHING),
    32: Row(
        "the API answers 5xx or 429, resets, stalls, drips headers, does not resolve",
        REAPER,
    ),
    33: Row("the token is revoked before the pause", "told, with the command to type"),
    34: Row("a pause is accepted and does not happen, or is undone", REAPER),
    35: Row("the endpoint is updating, pending, failed, scaled to zero at the pause", REAPER),
    36: Row("another user has deleted or paused it", REAPER),
    37: Row("it was running before; it is kept so; the run does not name it", HOOKS),
    38: Row("two runs on one machine share it", "the last one out"),
    39: Row("the run or the reaper is stopped, and killed or continued", f"{REAPER}, {SECOND}"),
    40: Row("the clock jumps", REAPER),
    41: Row("--collect-only, --help, --markers, --fixtures, --setup-plan", NOTHING),
    42: Row("pytest.main() twice in one process, pytester runs inside", HOOKS),
    43: Row("the interpreter ends while a thread is in a paid call", HOOKS),
    44: Row("the kernel gives a dead run's number to another process", REAPER),
    45: Row("the container's PID 1 dies, the machine is gone", f"{SWEEP}, {SERVER}"),
    46: Row("a sweep runs beside a live run", "left alone"),
    47: Row("the journal is torn or full of garbage; a full disk, then a kill", REAPER),
    48: Row("a power cut: only the journal is left", f"{SWEEP}, the next run"),
    49: Row("404, 401, 403, a page, an empty list or another endpoint for seconds", REAPER),
    50: Row("it runs again after its pause was verified", REAPER),
    51: Row("containers that share a folder of state", f"left alone; {SWEEP} after its time"),
    52: Row("the code under test has resumed or created it by requests of its own", REAPER),
}
NEMESIS = "test_nemesis"

INTRODUCTION = """\
# How a run can end, and who pauses then

The tests in `tests/faults` try each row with real processes that they really kill, against the
emulator. Its log is the evidence: at most one resume, paused in the end, no process and no token
left anywhere. `tests/faults/rows.py` writes this page from a run of all of them on two cores.

*after* is the time from the end of the run (the signal, the crash, the last test) to the state
"paused", the longest of the row's tests. Where a server in trouble or a second run is part of the
test, the time includes the trouble.

What the reaper writes (a line in its log or journal, the file of its lease, a message to pytest)
delays no pause. A 404 counts as "deleted" only after 15 seconds with no other answer, and if the
list of the namespace does not have the endpoint either. A 401 or 403 ends no retries: pytest says
after 15 seconds that the pause is not verified, and the reaper goes on for its ten minutes. 30 and
120 seconds after a verified pause it looks again (`hf_endpoint_looks`) and pauses what runs again,
unless another run has come to use it.

Two standbys back up the reaper; the first standby has started the second. Each receives what the
reaper receives, and takes over when those before it are dead. In a run with workers, under
`hfbudget run` and while an endpoint comes up, the run itself checks them every second and starts
others in their place. A process that stays stopped for about two seconds while it should act is
killed, and the next one takes over.

A lease names the boot and the pid namespace in which its processes run. If the plugin can't tell
from here whether a run lives, such as a run in another container, it leaves the endpoint alone
until its tag has expired; `sweep` names it.

These gaps remain:

- The reaper and both standbys are killed in one instant inside a test of a run without workers, and
  pytest ends before that test does. Or all three are stopped. The next run or `sweep` pauses then.
- Something ends each reaper as soon as it begins. After twenty in a minute no more standbys start:
  the run notices, has one reaper started anew, and then pauses by itself. Where the run is gone by
  then, the next run or `sweep` pauses.
- A reaper hangs without being stopped.
- Runs in different containers don't share an endpoint: the first to end pauses it.
- The later looks need the machine to live that long, which a discarded CI machine or container does
  not. They do not happen where the reaper and both standbys were killed and pytest had to pause by
  itself. What they find is in the journal, not in the report, which has been written by then.
- A state folder on a file system that hangs, instead of failing, delays a pause, because the reaper
  first looks up there which other runs share the endpoint.

| # | what goes wrong | who pauses | tries | after |
|--:|---|---|--:|--:|
"""


def rows_of(docstring: str | None) -> tuple[int, ...]:
    """The rows that a test says it tries."""
    said = re.match(r"Rows? (\d+(?:, \d+)*)", docstring or "")
    return tuple(map(int, said[1].split(", "))) if said else ()


def page(measured: Iterable[dict[str, Any]]) -> Iterator[str]:
    """The page, line by line."""
    seen = list(measured)
    yield from INTRODUCTION.splitlines()
    for number, row in ROWS.items():
        took = [one["took_s"] for one in seen if number in one["rows"]]
        yield f"| {number} | {row.what} | {row.by} | {len(took) or '-'} | {_longest(took)} |"
    took = [one["took_s"] for one in seen if NEMESIS in one["test"]]
    yield ""
    yield (
        f"And the nemesis: one run of 16 steps, killed at each of them by SIGINT, SIGTERM, SIGKILL "
        f"and a kill of its tree, and from the resume on also on a full disk, in bursts of 401, "
        f"403 and 404, with stopped reapers, and with reapers that are killed under workers: "
        f"{len(took)} runs, all paused, the longest after {_longest(took)} (a resume that takes "
        f"effect late is part of it)."
    )


def _longest(took: list[float]) -> str:
    longest = max(took, default=0.0)
    return f"{longest:.2f} s" if longest else "-"


if __name__ == "__main__":
    lines = Path(sys.argv[1]).read_text().splitlines()
    print("\n".join(page(map(json.loads, lines))))
