"""The project's own price table: TOML rows by name, matched from exact to general."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from pytest_hfbudget.errors import ConfigError
from pytest_hfbudget.money import ATTO_PER_USD, parse_rate
from pytest_hfbudget.pricing.price import MICROSECONDS, Price

PER_MILLION = frozenset({"input", "output", "cached"})
PER_UNIT = frozenset({"call", "image", "second"})
LONGEST = "max_seconds"
KEYS = (*sorted(PER_MILLION), *sorted(PER_UNIT), "free", LONGEST)


def parse_price(row: object, where: str) -> Price:
    """A price from its TOML row: tokens in USD per 1M, everything else in USD each.

    Raises:
        ConfigError: one line that names ``where`` and the key.
    """
    if not isinstance(row, Mapping):
        raise ConfigError(f"{where}: expected a table like {{ input = 0.02, output = 0.05 }}")
    rates: dict[str, Any] = {}
    for key, value in row.items():
        if key == "free":
            if not isinstance(value, bool):
                raise ConfigError(f"{where}: free = {value!r}; write true or false")
            rates["free"] = value
        elif key in PER_MILLION or key in PER_UNIT:
            rates[key] = _rate(value, key, where)
        elif key != LONGEST:
            raise ConfigError(f"{where}: unknown key {key!r}; known are {', '.join(KEYS)}")
    price = Price(**rates, longest=_longest(row, where))
    if price.free and len(rates) > 1:
        raise ConfigError(f"{where}: free = true next to a price; write one of the two")
    if price.known and not price.free and not any(rates.values()):
        raise ConfigError(f"{where}: a price of 0; write free = true if it costs nothing")
    if not price.known:
        raise ConfigError(f"{where}: says no price; write for example input = 0.02, output = 0.05")
    return price


def _longest(row: Mapping[str, Any], where: str) -> int | None:
    """The microseconds that a call takes at most, where a row says so."""
    if LONGEST not in row:
        return None
    if "second" not in row:
        raise ConfigError(f"{where}: {LONGEST} without second; write the price of a second, too")
    try:
        longest = parse_rate(row[LONGEST]) * MICROSECONDS // ATTO_PER_USD
    except ValueError as error:
        raise ConfigError(f"{where}: {LONGEST} = {row[LONGEST]}: {error}") from None
    if not longest:
        raise ConfigError(f"{where}: {LONGEST} = {row[LONGEST]}; write how long a call may take")
    return longest


def _rate(value: object, key: str, where: str) -> int:
    try:
        return parse_rate(value, units=10**6 if key in PER_MILLION else 1)
    except ValueError as error:
        raise ConfigError(f"{where}: {key} = {value}: {error}") from None


@dataclass(frozen=True)
class PriceTable:
    """Rows by name, each with where it was written.

    Names go from exact to general: ``org/model:provider``, ``org/model``, ``model:provider``,
    ``model``, ``*:provider``, ``*``; or the URL of a server, for everything below it.
    """

    rows: Mapping[str, tuple[Price, str]] = field(default_factory=dict)

    @classmethod
    def parse(cls, rows: Mapping[str, Any], source: str) -> PriceTable:
        """The table behind parsed TOML.

        Raises:
            ConfigError: a row is not a price.
        """
        if not isinstance(rows, Mapping):
            raise ConfigError(f"{source}: prices must be tables by name")
        places = {name: f'{source}: ["{name}"]' for name in rows}
        return cls({name: (parse_price(rows[name], at), at) for name, at in places.items()})

    @classmethod
    def load(cls, path: Path) -> PriceTable:
        """The table in a TOML file of rows.

        Raises:
            ConfigError: the file can't be read, is not TOML, or holds a row that is no price.
        """
        return cls.parse(read_toml(path), str(path))

    def over(self, other: PriceTable) -> PriceTable:
        """Both tables; where both have a row of one name, this one's counts."""
        return PriceTable({**other.rows, **self.rows})

    def find(self, model: str, provider: str | None) -> tuple[Price, str] | None:
        """The price of a model, and where its row is written."""
        if model.startswith(("http://", "https://")):
            return self._find_url(model) or self.rows.get("*")
        for name in _names(model, provider):
            if name in self.rows:
                return self.rows[name]
        return None

    def providers(self, model: str) -> set[str]:
        """Providers that have a row of their own for this model."""
        names = {model, model.rpartition("/")[2]}
        split = (row.rpartition(":") for row in self.rows)
        return {suffix for name, colon, suffix in split if colon and name in names}

    def _find_url(self, url: str) -> tuple[Price, str] | None:
        prefixes = [row for row in self.rows if is_below(url, row)]
        longest = max(prefixes, key=len, default=None)
        return None if longest is None else self.rows[longest]


def is_below(url: str, prefix: str) -> bool:
    """Whether a URL is a prefix or below it; ``http://a:80`` is not below ``http://a:8``."""
    base = prefix.rstrip("/")
    return base != "" and (url == base or url.startswith(base + "/"))


def _names(model: str, provider: str | None) -> Iterator[str]:
    short = model.rpartition("/")[2]
    for name in (model, short):
        if provider:
            yield f"{name}:{provider}"
        yield name
    if provider:
        yield f"*:{provider}"
    yield "*"


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file, or one line that says where it is wrong.

    Raises:
        ConfigError: the file can't be read or parsed.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        text = path.read_text(encoding="utf-8")
        # Decimal keeps 0.0000000375 what it says; a float would be close to it.
        parsed: dict[str, Any] = tomllib.loads(text, parse_float=Decimal)
    except OSError as error:
        raise ConfigError(f"{path}: can't be read ({error.strerror})") from None
    except (ValueError, ArithmeticError) as error:  # a number may be too much for int or Decimal
        raise ConfigError(f"{path}: is not TOML: {error}") from None
    return parsed
