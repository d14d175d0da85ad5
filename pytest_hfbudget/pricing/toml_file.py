"""A TOML file, and one-line errors that name the wrong line."""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from pytest_hfbudget.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# Thousands of rows. A longer file is not a price file, and would take seconds to read.
MOST_BYTES = 2 * 10**6
_LONGEST = 50  # lines of one statement; a price has one
_AT_LINE = re.compile(r"at line (\d+)")


@dataclass(frozen=True)
class TomlFile:
    """The content of a file, and its text, in which the line of a key can be found."""

    path: Path
    content: dict[str, Any]
    text: str

    @classmethod
    def read(cls, path: Path) -> TomlFile:
        """The file at ``path``. A byte order mark at its start, as Windows writes it, is skipped.

        Raises:
            ConfigError: it can't be read, is too long, not UTF-8, or not TOML.
        """
        text = _text(path)
        try:
            # The parser names no line for what ends with the file, so it ends with a new line.
            # Decimal keeps 0.0000000375 what it says; a float would be close to it.
            return cls(path, tomllib.loads(f"{text}\n", parse_float=Decimal), text)
        except RecursionError:
            raise ConfigError(f"{path}: is not TOML: it is nested too deeply") from None
        except (ValueError, ArithmeticError) as error:  # numbers can be too much for int or Decimal
            raise ConfigError(f"{path}: is not TOML: {error}{_quoted(text, error)}") from None

    def below(self, *keys: str) -> Any:
        """The value under a path of keys; an empty table where there is none.

        Raises:
            ConfigError: a value on the path is not a table.
        """
        found: Any = self.content
        for depth, key in enumerate(keys):
            if not isinstance(found, Mapping):
                at = self.line(keys[:depth])
                raise ConfigError(f"{self.path}: {'.'.join(keys[:depth])} must be a table{at}")
            found = found.get(key, {})
        return found

    def line(self, keys: tuple[str, ...]) -> str:
        """`` (at line N)`` for the deepest part of a path of keys that has a line of its own."""
        number = _line_of(self.text, keys)
        return f" (at line {number})" if number else ""


def _text(path: Path) -> str:
    try:
        kind = path.stat().st_mode
        if not stat.S_ISREG(kind):  # a pipe might never answer, and it can't be read twice
            why = "Is a directory" if stat.S_ISDIR(kind) else "not a regular file"
            raise ConfigError(f"{path}: can't be read ({why})")
        with path.open("rb") as file:
            raw = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: can't be read ({error.strerror})") from None
    if len(raw) > MOST_BYTES:
        size = os.stat(path).st_size
        raise ConfigError(
            f"{path}: has {size:,} bytes; prices are read from at most {MOST_BYTES:,}"
        )
    try:
        return raw.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        byte = raw[error.start]
        raise ConfigError(
            f"{path}: is not TOML: byte 0x{byte:02x} is not UTF-8 (at line {line})"
        ) from None


def _quoted(text: str, error: Exception) -> str:
    """The line that a parser complains of, since users look for its key."""
    lines = text.split("\n")
    if at := _AT_LINE.search(str(error)):
        number, hint = int(at[1]), ""
    else:
        number = _unclosed(lines)
        hint = f", see line {number}"
    return f"{hint}: {lines[number - 1].strip()[:80]}" if number <= len(lines) else ""


def _unclosed(lines: list[str]) -> int:
    """The line where an unclosed statement begins; the parser only says that there is one."""
    start, statement = 1, ""
    for number, line in enumerate(lines, 1):
        statement += f"{line}\n"
        try:
            tomllib.loads(statement)
        except (ValueError, RecursionError):
            if number - start > _LONGEST:
                break
        else:
            start, statement = number + 1, ""
    return start


def _line_of(text: str, keys: tuple[str, ...]) -> int | None:
    """The line of a key. The parser keeps no lines, so each line is parsed by itself.

    A line in a multi-line string can be taken for a key; then a message has a wrong number, and
    still names the key.
    """
    table: tuple[str, ...] = ()
    best: tuple[int, int] | None = None
    for number, line in enumerate(text.split("\n"), 1):
        if line.lstrip().startswith("["):
            here = table = _path_of(line) or table
        else:
            own = _key(line)
            here = (*table, *own) if own else ()
        deeper = best is None or len(here) > best[0]
        if here and deeper and here == keys[: len(here)]:
            best = (len(here), number)
    return best[1] if best else None


def _key(line: str) -> tuple[str, ...]:
    """The keys before the first equals sign that is not in a quoted key."""
    at = line.find("=")
    while at > 0:
        if found := _path_of(line[:at] + "= 0"):
            return found
        at = line.find("=", at + 1)
    return ()


def _path_of(statement: str) -> tuple[str, ...]:
    """The keys of a statement, the outermost first; empty where it is not a whole statement."""
    try:
        inside: Any = tomllib.loads(statement)
    except (ValueError, RecursionError):
        return ()
    keys: list[str] = []
    while isinstance(inside, dict) and inside:
        ((key, inside),) = inside.items()
        keys.append(key)
        inside = inside[0] if isinstance(inside, list) and inside else inside
    return tuple(keys)
