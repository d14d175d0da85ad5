"""What the ledger remembers: settled calls, and refused calls."""

from __future__ import annotations

import json
import marshal
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from pytest_hfbudget.ledger.rpc import codec


class Charge(NamedTuple):
    """One settled call. Money is nano-USD; None where the call had no price and no cap.

    ``estimated`` says that no usage came back and the amount is an upper bound. ``status`` is
    the HTTP status, or a word where none came back: ``timeout``, ``lost``, ``closed``,
    ``refused`` (the connection). ``over`` is what it cost beyond its hold: it took longer
    than that was for. ``scopes`` are the keys of every budget that was charged. ``replayed`` says
    that somebody else than the network answered, so that it cost nothing. ``instead_of`` is the
    model that the caller had asked for, where a budget's fallback has put another in its place.
    ``at`` is when the call was made, in unix seconds. ``endpoint`` is the endpoint of the run, by
    ``namespace/name``, that the call went to; None for every other call.
    """

    test: str | None
    task: str
    model: str
    provider: str | None
    input_tokens: int
    output_tokens: int
    nano_usd: int | None
    price_source: str
    status: str
    estimated: bool
    seconds: float
    where: str = ""
    scopes: tuple[str, ...] = ()
    over: int = 0
    replayed: bool = False
    instead_of: str = ""
    at: float = 0.0
    endpoint: str | None = None


class Refusal(NamedTuple):
    """One call that was not sent."""

    test: str | None
    scope: str
    model: str
    message: str
    scope_key: str = ""


# Charges that are packed at a time. Most runs make fewer, and pack nothing.
PACK = 1024


class Charges:
    """Charges in the order of their settlement; whoever uses it holds a lock.

    Plain tuples at first, and packed in the end: as objects they would be twenty times as large,
    and the garbage collector would walk over all of them again and again.
    """

    def __init__(self) -> None:
        self._packs: list[bytes] = []
        self._recent: list[tuple[Any, ...]] = []

    def append(self, charge: Charge) -> None:
        """Keep one more."""
        self._recent.append(tuple(charge))
        if len(self._recent) >= PACK:
            self._packs.append(zlib.compress(_dumped(self._recent), 1))
            self._recent = []

    def __iter__(self) -> Iterator[Charge]:
        for pack in self._packs:
            yield from map(Charge._make, marshal.loads(zlib.decompress(pack)))  # noqa: S302 - own
        yield from map(Charge._make, self._recent)


def _dumped(rows: list[tuple[Any, ...]]) -> bytes:
    """Rows in the quickest format: they are read by the process that writes them, and no other."""
    try:
        return marshal.dumps(rows)
    except ValueError:  # a name that is an enum's member; as JSON it is plain text
        return marshal.dumps([tuple(codec.charge(row)) for row in json.loads(json.dumps(rows))])
