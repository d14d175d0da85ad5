"""The project's own price table: TOML rows by name, matched from exact to general."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pytest_hfbudget.errors import ConfigError
from pytest_hfbudget.money import ATTO_PER_USD, parse_rate
from pytest_hfbudget.pricing.price import MICROSECONDS, POLICIES, Price
from pytest_hfbudget.pricing.toml_file import TomlFile
from pytest_hfbudget.text import public_url

PER_MILLION = frozenset({"input", "output", "cached"})
PER_UNIT = frozenset({"call", "image", "second"})
LONGEST = "max_seconds"
KEYS = (*sorted(PER_MILLION), *sorted(PER_UNIT), "free", LONGEST)
# Names of the row for every model without one of its own; other price lists use the second.
FOR_ALL = ("*", "default")


class RowError(ConfigError):
    """An invalid row; ``key`` is the wrong key in it, if it is one key."""

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
    """The most microseconds that a call takes, where a row gives them."""
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
    it. ``hidden`` are rows whose name another table has too.
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
