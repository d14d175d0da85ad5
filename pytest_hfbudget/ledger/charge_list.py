"""Every settled call of a run, kept small: a long run makes a million of them."""

from __future__ import annotations

import json
import marshal
import zlib
from collections.abc import Iterator
from typing import Any

from pytest_hfbudget.ledger.charge import Charge
from pytest_hfbudget.ledger.rpc import codec

# Charges that are packed at a time. Most runs make fewer, and pack nothing.
PACK = 1024


class Charges:
    """Charges in the order of their settlement; its user holds a lock.

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
