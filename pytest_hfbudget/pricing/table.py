"""The project's own price table: TOML rows by name, matched from exact to general.

The message for a mistake in its file is one line of text, and names the line of the mistake.
"""

from __future__ import annotations

import json
import os
import re
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

from pytest_hfbudget.errors import ConfigError
from pytest_hfbudget.money import ATTO_PER_USD, parse_rate
from pytest_hfbudget.pricing import MICROSECONDS, POLICIES, Price
from pytest_hfbudget.text import public_url

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PER_MILLION = frozenset({"input", "output", "cached"})
PER_UNIT = frozenset({"call", "image", "second"})
LONGEST = "max_seconds"
KEYS = (*sorted(PER_MILLION), *sorted(PER_UNIT), "free", LONGEST)
# Names of the row for every model without one of its own; other price lists use the second.
FOR_ALL = ("*", "default")

# Thousands of rows. A longer file is not a price file, and would take seconds to read.
MOST_BYTES = 2 * 10**6
_MOST_LINES = 50  # lines of one statement; a price has one
_AT_LINE = re.compile(r"at line (\d+)")


class RowError(ConfigError):
    """An invalid row; ``key`` has the wrong key in it, and is empty if it is not one key."""

    def __init__(self, message: str, *key: str) -> None:
        super().__init__(message)
        self.key = key


def parse_price(row: object, where: str) -> Price:
    """A price from its TOML row: tokens in USD per 1M, everything else in USD each.

    Raises:
        ConfigError: it is invalid; the message names ``where`` and the key.
    """
    if not isinstance(row, Mapping):
        raise RowError(f"{where}: expected a table like {{ input = 0.02, output = 0.05 }}")
    rates: dict[str, Any] = {}
    for key, value in row.items():
        if key == "free":
            if not isinstance(value, bool):
                raise RowError(f"{where}: free = {value!r}; write true or false", key)
            rates["free"] = value
        elif key in PER_MILLION or key in PER_UNIT:
            rates[key] = _rate(value, key, where)
        elif key != LONGEST:
            raise RowError(f"{where}: unknown key {key!r}; known are {', '.join(KEYS)}", key)
    price = Price(**rates, longest=_longest(row, where))
    if price.free and len(rates) > 1:
        raise RowError(f"{where}: free = true next to a price; write one of the two")
    if price.known and not price.free and not any(rates.values()):
        raise RowError(f"{where}: a price of 0; write free = true if it costs nothing")
    if not price.known:
        raise RowError(f"{where}: has no price; write for example input = 0.02, output = 0.05")
    return price


def _longest(row: Mapping[str, Any], where: str) -> int | None:
    """The most microseconds that a call takes; None if the row does not say."""
    if LONGEST not in row:
        return None
    if "second" not in row:
        wrong = f"{where}: {LONGEST} without second; write the price of a second, too"
        raise RowError(wrong, LONGEST)
    try:
        longest = parse_rate(row[LONGEST]) * MICROSECONDS // ATTO_PER_USD
    except ValueError as error:
        raise RowError(f"{where}: {LONGEST} = {row[LONGEST]}: {error}", LONGEST) from None
    if not longest:
        wrong = f"{where}: {LONGEST} = {row[LONGEST]}; write how long a call may take"
        raise RowError(wrong, LONGEST)
    return longest


def _rate(value: object, key: str, where: str) -> int:
    try:
        return parse_rate(value, units=10**6 if key in PER_MILLION else 1)
    except ValueError as error:
        text = " ".join(str(value).split())  # a string may have lines; a message has one
        raise RowError(f"{where}: {key} = {text}: {error}", key) from None


class Row(NamedTuple):
    """A row that applies to a model; ``rule`` says how its name matches."""

    name: str
    rule: str
    price: Price
    where: str


@dataclass(frozen=True)
class PriceTable:
    """Rows by name, each with where it was written.

    Names go from exact to general: ``org/model:provider``, ``org/model``, ``model:provider``,
    ``model``, ``*:provider``, ``*`` or ``default``; or the URL of a server, for everything below
    it. ``hidden`` has the rows of another table that rows of the same name override.
    """

    rows: Mapping[str, tuple[Price, str]] = field(default_factory=dict)
    hidden: Mapping[str, tuple[Price, str]] = field(default_factory=dict)

    @classmethod
    def parse(cls, rows: Mapping[str, Any], source: str) -> PriceTable:
        """The table in parsed TOML.

        Raises:
            ConfigError: a row is invalid.
        """
        if not isinstance(rows, Mapping):
            raise ConfigError(f"{source}: prices must be tables by name")
        return cls({name: _row(name, rows[name], source) for name in rows})

    @classmethod
    def load(cls, path: Path, *below: str, source: str = "") -> PriceTable:
        """The rows of a TOML file, at its top level or ``below`` some keys.

        Raises:
            ConfigError: the file can't be read, is not TOML, or has an invalid row; the message
                has the number of the wrong line.
        """
        file, rows = TomlFile.read(path), {}
        found = file.below(*below)
        if not isinstance(found, Mapping):
            raise ConfigError(f"{path}: prices must be tables by name{file.line(below)}")
        for name, row in found.items():
            try:
                rows[name] = _row(name, row, source or str(path))
            except RowError as error:
                at = file.line((*below, name, *error.key))
                raise ConfigError(f"{error}{at}") from None
        return cls(rows)

    def over(self, other: PriceTable) -> PriceTable:
        """Both tables; where both have a row of one name, this one's counts."""
        hidden = {name: row for name, row in other.rows.items() if name in self.rows}
        return PriceTable({**other.rows, **self.rows}, hidden)

    def find(self, model: str, provider: str | None) -> tuple[Price, str] | None:
        """The price of a model, and where its row is written."""
        for name, _ in self._names(model, provider):
            if name in self.rows:
                return self.rows[name]
        return None

    def matches(self, model: str, provider: str | None) -> Iterator[Row]:
        """Every row that applies to a model; the first one counts."""
        for name, rule in self._names(model, provider):
            for rows in (self.rows, self.hidden):
                if name in rows:
                    yield Row(name, rule, *rows[name])

    def providers(self, model: str) -> set[str]:
        """Providers that have a row of their own for this model."""
        names = {model, model.rpartition("/")[2]}
        split = (row.rpartition(":") for row in self.rows)
        return {suffix for name, colon, suffix in split if colon and name in names}

    def _names(self, model: str, provider: str | None) -> Iterable[tuple[str, str]]:
        if model.startswith(("http://", "https://")):
            return self._urls(model)
        return _names(model, provider)

    def _urls(self, url: str) -> Iterator[tuple[str, str]]:
        # The URL of a model has no query, so a row with one applies to none.
        rows = (row for row in self.rows if "?" not in row)
        prefixes = (row for row in rows if is_below(url, public_url(row)))
        for prefix in sorted(prefixes, key=len, reverse=True):
            yield prefix, "this URL is below it"
        for name in FOR_ALL:
            yield name, "any model or server"


def is_below(url: str, prefix: str) -> bool:
    """Whether a URL is a prefix or below it; ``http://a:80`` is not below ``http://a:8``."""
    base = prefix.rstrip("/")
    return base != "" and (url == base or url.startswith(base + "/"))


def _row(name: str, row: object, source: str) -> tuple[Price, str]:
    where = f"{source}: [{json.dumps(public_url(name), ensure_ascii=False)}]"
    if name.rpartition(":")[2] in POLICIES:
        raise RowError(
            f"{where}: fastest, cheapest and preferred leave the choice to the router; "
            "name the model alone, or with a provider"
        )
    return parse_price(row, where), where


def _names(model: str, provider: str | None) -> Iterator[tuple[str, str]]:
    short = model.rpartition("/")[2]
    for name, which in ((model, "the model"), (short, "the model of any organisation")):
        if provider:
            yield f"{name}:{provider}", f"{which}, by this provider"
        yield name, f"{which}, by any provider"
        if short == model:
            break
    if provider:
        yield f"*:{provider}", "any model, by this provider"
    for name in FOR_ALL:
        yield name, "any model or server"


@dataclass(frozen=True)
class TomlFile:
    """A TOML file: its content, and its text, from which come the line numbers of keys."""

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
            # Without a newline at the end, the parser names no line for a mistake there.
            # Decimal reads 0.0000000375 exactly; a float would only be close to it.
            return cls(path, tomllib.loads(f"{text}\n", parse_float=Decimal), text)
        except RecursionError:
            raise ConfigError(f"{path}: is not TOML: it is nested too deeply") from None
        except (ValueError, ArithmeticError) as error:  # numbers can be too much for int or Decimal
            raise ConfigError(f"{path}: is not TOML: {error}{_quoted(text, error)}") from None

    def below(self, *keys: str) -> Any:
        """The value under a path of keys; an empty table if there is none.

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
    """The text of the line that the parser has rejected, in which users recognise their key."""
    lines = text.split("\n")
    if at := _AT_LINE.search(str(error)):
        number, hint = int(at[1]), ""
    else:
        number = _unclosed(lines)
        hint = f", see line {number}"
    return f"{hint}: {lines[number - 1].strip()[:80]}" if number <= len(lines) else ""


def _unclosed(lines: list[str]) -> int:
    """The number of the line where an unclosed statement begins, which the parser does not say."""
    start, statement = 1, ""
    for number, line in enumerate(lines, 1):
        statement += f"{line}\n"
        try:
            tomllib.loads(statement)
        except (ValueError, RecursionError):
            if number - start > _MOST_LINES:
                break
        else:
            start, statement = number + 1, ""
    return start


def _line_of(text: str, keys: tuple[str, ...]) -> int | None:
    """The number of the line of a key. The parser keeps none, so each line is parsed by itself.

    A line in a multi-line string can be taken for a key. Then a message has a wrong number, but
    still the right key.
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
    """The keys of a statement, the outermost first; empty if it is not a whole statement."""
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
