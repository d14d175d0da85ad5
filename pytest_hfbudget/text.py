"""Text from outside: URLs without credentials, names without control characters, JSON, headers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

UNSHOWABLE = "\N{REPLACEMENT CHARACTER}"
# Patterns are compiled when they are used: the plugin imports this in every run of pytest.
# Control characters except the line feed, and the marks, embeddings and isolates of UAX #9.
_CONTROLS = "[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]"
_AUTHORITY_ENDS = "[/?#]"
# The authority of a URL that has no user and no password.
_HOST = r"(\[[^\]]*\]|[^:@\[\]]*)(:\d*)?"


def public_url(url: str) -> str:
    """A URL without user, password, query and fragment; any other text as it is.

    It is read leniently: a password that should have been quoted may hold ``/``, ``?`` or ``#``.
    """
    scheme, colon, rest = url.partition("://")
    if not colon:
        return url
    authority = re.split(_AUTHORITY_ENDS, rest, maxsplit=1)[0]
    if "@" in authority:
        rest = authority.rpartition("@")[2] + rest[len(authority) :]
    elif not re.fullmatch(_HOST, authority):
        rest = rest.rpartition("@")[2]
    return f"{scheme}://{re.split('[?#]', rest, maxsplit=1)[0]}"


def public_value(given: str) -> str:
    """A value that is refused, without what may be a password, a query or a fragment in it.

    It may be a URL, one whose scheme was forgotten, or a list of them. A model's name may have an
    ``@``, and is no such value.
    """
    if "://" in given and not re.search(r"[\s,]", given):
        return public_url(given)
    before, at, after = given.rpartition("@")
    if re.search("[?#]", before):  # of a password, or of a query: what follows may belong to it
        return "***"
    return ("***@" if at else "") + re.split("[?#]", after, maxsplit=1)[0]


def printable(text: str, keep: str = "") -> str:
    """Text without characters that control a terminal.

    These are control characters, line ends, and marks that change the direction of writing.

    Args:
        keep: characters that stay all the same.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else UNSHOWABLE for c in text)


def shortened(name: str, width: int) -> str:
    """A name of at most ``width`` characters: a longer one loses its beginning."""
    return name if len(name) <= width else "…" + name[-(width - 1) :]


def undirected(text: str) -> str:
    """Text for a page: without control characters and marks that change its direction."""
    return re.sub(_CONTROLS, UNSHOWABLE, text)


def parse_json(text: str | bytes | bytearray, *, strictly: bool = False) -> Any:
    """The value of a JSON text.

    Args:
        strictly: do not read an object that has a name twice. JSON leaves it open which of the two
            values counts (RFC 8259, section 4).

    Raises:
        ValueError: it is not JSON, or nested too deeply to be read.
    """
    try:
        return json.loads(text, object_pairs_hook=_named_once if strictly else None)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _named_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    named = dict(pairs)
    if len(named) < len(pairs):
        raise ValueError("an object has the same name twice")
    return named


# The headers that the cost of a call depends on.
HEADERS = (
    "x-inference-provider",
    "x-prompt-tokens",
    "x-generated-tokens",
    "x-compute-tokens",
    "x-compute-time",
)


class Headers(Mapping[str, str]):
    """The headers of an answer, without those that are not strings."""

    def __init__(self, answer: object) -> None:
        try:
            self._headers: Any = getattr(answer, "headers", None)
        except Exception:  # a property of another library
            self._headers = None

    def __getitem__(self, name: str) -> str:
        try:
            value = self._headers.get(name)
        except Exception:
            value = None
        if not isinstance(value, str):
            raise KeyError(name)
        return value

    def __iter__(self) -> Iterator[str]:
        return (name for name in HEADERS if name in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)
