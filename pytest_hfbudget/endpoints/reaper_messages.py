"""The messages between the client (pytest, `hfbudget run`) and its reaper: JSON lines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from json import dumps, loads  # by name: a test may replace those of the module
from typing import TYPE_CHECKING, Any, TypeAlias

from pytest_hfbudget.endpoints.retry import Timings

if TYPE_CHECKING:
    from pytest_hfbudget.shared import SharedConnection

# Why endpoints are paused; `PauseReceipt.reason` is one of these.
ASKED = "asked"
DEADLINE = "deadline"
CLIENT_GONE = "owner gone"  # the word of the first version, in journals and reports
REAPER_LOST = "reaper lost"
SWEPT = "swept"
AWAKE = "awake again"


@dataclass(frozen=True)
class Arm:
    """Client: the first message, and the only one with the token and the password."""

    token: str | None = field(repr=False)
    api: str
    client_pid: int
    client_start: str | None
    run: str
    journal: str
    lease_dir: str
    timings: Timings = field(default_factory=Timings)
    ca_file: str | None = None
    proxy: str | None = field(default=None, repr=False)
    shared: SharedConnection | None = field(default=None, repr=False)


@dataclass(frozen=True)
class BeginLease:
    """Client: pause this endpoint at the end of this process.

    Attributes:
        scaling: ``compute.scaling`` to restore after the pause; None to leave it unchanged.
        untag: whether to remove the tags of runs.
        resuming: a resume is being sent, and may take effect at any time until `ResumeOver`.
        created: the code under test creates it, so it may not exist now.
    """

    endpoint: str
    scaling: Mapping[str, Any] | None = None
    untag: bool = False
    resuming: bool = False
    created: bool = False


@dataclass(frozen=True)
class ResumeOver:
    """Client: no resume of this endpoint is under way any more."""

    endpoint: str


@dataclass(frozen=True)
class PauseDeadline:
    """Client: pause all at this time of the system's steady clock; None removes the deadline."""

    at_mono: float | None


@dataclass(frozen=True)
class Pause:
    """Client: pause all now."""


@dataclass(frozen=True)
class EndLease:
    """Client: pause this endpoint now; the run goes on without it."""

    endpoint: str


@dataclass(frozen=True)
class Ready:
    """Reaper: it watches the client now; ``pid`` is the reaper's."""

    pid: int


@dataclass(frozen=True)
class LeaseAnswer:
    """Reaper: it will pause this endpoint; or ``error``, why it can't guarantee that."""

    endpoint: str
    error: str | None = None


@dataclass(frozen=True)
class Pausing:
    """Reaper: it has begun to pause all endpoints, and why."""

    reason: str


@dataclass(frozen=True)
class PauseReceipt:
    """Reaper: how the pause of one endpoint ended, at the end of the run or before it.

    Attributes:
        state: the last state that was read; empty if none was.
        verified: the server said, after the pause request, that it is paused or deleted.
        paused_at: unix seconds at which the server said so.
        paused_mono: the same, or when it was left, on the system's steady clock.
        attempts: how many pause requests were sent.
        warnings: other problems, such as settings that could not be restored.
        reason: why it was paused.
        left_to: the run that goes on using it, and will pause it.
        restored: whether all settings that the run had changed were restored.
    """

    endpoint: str
    state: str
    verified: bool
    paused_at: float | None = None
    paused_mono: float | None = None
    error: str | None = None
    attempts: int = 0
    warnings: tuple[str, ...] = ()
    reason: str = ""
    left_to: str | None = None
    restored: bool = True

    @property
    def in_order(self) -> bool:
        """Whether the endpoint needs no further action."""
        return self.verified or self.left_to is not None


@dataclass(frozen=True)
class Done:
    """Reaper: nothing is left to do."""


Message: TypeAlias = (
    Arm
    | BeginLease
    | ResumeOver
    | PauseDeadline
    | EndLease
    | Pause
    | Ready
    | LeaseAnswer
    | Pausing
    | PauseReceipt
    | Done
)

_KINDS: dict[str, Callable[..., Message]] = {
    kind.__name__.lower(): kind
    for kind in (
        Arm,
        BeginLease,
        ResumeOver,
        PauseDeadline,
        EndLease,
        Pause,
        Ready,
        LeaseAnswer,
        Pausing,
        PauseReceipt,
        Done,
    )
}


def encode(message: Message) -> bytes:
    """A message as one line."""
    kind = type(message).__name__.lower()
    return dumps({"type": kind, **asdict(message)}).encode() + b"\n"


class Decoder:
    """Puts messages together from the bytes that arrive."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[Message]:
        """The messages that are complete now."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [_decode(line) for line in lines]


def _decode(line: bytes) -> Message:
    data = loads(line)
    make = _KINDS[data.pop("type")]
    if "timings" in data:
        timings = data["timings"]
        data["timings"] = Timings(**{**timings, "looks_s": tuple(timings["looks_s"])})
    if data.get("shared") is not None:
        from pytest_hfbudget.shared import SharedConnection

        data["shared"] = SharedConnection(**data["shared"])
    if "warnings" in data:
        data["warnings"] = tuple(data["warnings"])
    return make(**data)
