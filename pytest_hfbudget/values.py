"""What a setting is, and the parsers of settings.

Each parser raises `ValueError` with what to write instead.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NoReturn, Protocol, TypeVar, overload

from pytest_hfbudget.errors import ConfigError
from pytest_hfbudget.money import parse_rate

if TYPE_CHECKING:
    from fractions import Fraction
    from urllib.parse import SplitResult

N = TypeVar("N", int, float)
T = TypeVar("T")

_SWITCH = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
_LATEST_S = 3600
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")  # of an endpoint
_LONGEST_LABEL = 200


class HasValues(Protocol):
    """An object with the value of every setting by its name."""

    @property
    def by_name(self) -> Mapping[str, Any]: ...


class Setting(Generic[T]):
    """One entry of the table. Read from an instance of `Settings`, it gives its value there.

    Attributes:
        default: the value if the user gives none.
        parse: returns the value of a written text; raises `ValueError` with what to write instead.
        option, variable, ini: its three names; empty for a name that it does not have.
        metavar: what the option's value is called; empty where the option takes none.
        help: what `pytest --help` says.
        guards_money: an empty value is an error, see `Guard`.
        repeatable: the option may be given several times, and the ini key has a list.
    """

    guards_money = False

    def __init__(
        self,
        default: T,
        parse: Callable[[Any], Any],
        names: str,
        help: str,
        *,
        repeatable: bool = False,
    ) -> None:
        """``names`` are ``--option=METAVAR VARIABLE ini``, those of them that exist."""
        self.name = self.option = self.metavar = self.variable = self.ini = ""
        self.default, self.parse, self.help, self.repeatable = default, parse, help, repeatable
        for name in names.split():
            if name.startswith("--"):
                self.option, _, self.metavar = name.partition("=")
            elif name.isupper():
                self.variable = name
            else:
                self.ini = name

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, settings: None, owner: type) -> Setting[T]: ...
    @overload
    def __get__(self, settings: HasValues, owner: type) -> T: ...
    def __get__(self, settings: HasValues | None, owner: type) -> Setting[T] | T:
        return self if settings is None else settings.by_name[self.name]

    def __set__(self, settings: HasValues, value: NoReturn) -> None:
        raise AttributeError(f"{self.name} can't be set; `Settings.replaced` makes a copy")

    @property
    def is_file(self) -> bool:
        """Whether its value is the path of a file."""
        return self.parse is Path


class Guard(Setting[T]):
    """A setting without which a run could spend more, so an empty value is an error."""

    guards_money = True


def assumed_rates(policy: str) -> tuple[int, int] | None:
    """The atto-USD per token of ``assume:IN/OUT``; None for ``refuse`` and ``free``.

    Raises:
        ValueError: the policy is invalid.
    """
    if policy in ("refuse", "free"):
        return None
    kind, _, rates = policy.partition(":")
    if kind != "assume" or rates.count("/") != 1:
        raise ValueError(
            "write refuse, free, or assume:IN/OUT (USD per 1M tokens, for example assume:1/4)"
        )
    rate_in, rate_out = (parse_rate(part, units=10**6) for part in rates.split("/"))
    return rate_in, rate_out


def names(value: str | Sequence[str]) -> tuple[str, ...]:
    """Names, without duplicates. Spaces or commas separate them."""
    names = value.replace(",", " ").split() if isinstance(value, str) else value
    return tuple(dict.fromkeys(names))


def hosts(value: str | Sequence[str]) -> tuple[str, ...]:
    """Hosts with or without a port, or URLs. Spaces or commas separate them."""
    given = names(value)
    for each in given:
        parts = _parts(each if "://" in each else f"//{each}")
        known = parts is not None and parts.scheme in ("", "http", "https") and parts.hostname
        if not known or "*" in each:
            from pytest_hfbudget.text import public_value  # few values are wrong

            # Where there is a password, it may hold a comma: then this is a part of it.
            which = "an entry" if "@" in "".join(given) else public_value(each)
            raise ValueError(
                f"{which} is not a host; write api.example.com or http://localhost:8000/v1, for "
                "example"
            )
    return given


def url(value: str) -> str:
    """A base URL without its last slash."""
    if not value.startswith(("http://", "https://")):
        raise ValueError("write a URL that starts with http:// or https://")
    if len(value.split()) > 1 or _parts(value) is None:
        raise ValueError("its host and port can't be read. Percent-encode the password in it")
    return value.rstrip("/")


def _parts(url: str) -> SplitResult | None:
    """The parts of a URL; None if it has no valid host or port."""
    from urllib.parse import urlsplit  # takes milliseconds that few runs need

    try:
        parts = urlsplit(url)
        valid = parts.port != 0
    except ValueError:  # its text may repeat a password
        return None
    return parts if valid else None


def shared_server(value: str) -> str:
    """The URL of a Redis or Valkey server; a message about it never has its password."""
    parts, named = _parts(value.strip()), None
    if parts is not None and parts.scheme in ("redis", "rediss", "unix"):
        named = parts.path.strip("/") if parts.scheme == "unix" else parts.hostname
    if not named:
        raise ValueError("write redis://HOST:PORT/DB, rediss://HOST:PORT/DB (TLS) or unix:///PATH")
    return value.strip()


def refuse_password(url: str) -> None:
    """Refuse a URL with a password where others can read it: in an argument list, or in a file."""
    parts = _parts(url)
    if parts is not None and (parts.password or "password=" in parts.query):
        raise ValueError(
            "its password can be read here. Put the password into HFBUDGET_SHARED_PASSWORD, or "
            "the whole URL into HFBUDGET_SHARED"
        )


def label(value: str) -> str:
    """A name of up to 200 printable characters."""
    name = value.strip()
    if not name.isprintable() or len(name) > _LONGEST_LABEL:
        raise ValueError(f"write up to {_LONGEST_LABEL} printable characters")
    return name


def emulator(value: str) -> str | None:
    """The URL of an emulator, ``start`` to start one for the run, None for no rehearsal."""
    word = value.strip().lower()
    if word == "start" or word in _SWITCH:
        return "start" if _SWITCH.get(word, True) else None
    if not word.startswith(("http://", "https://")):
        raise ValueError("write 1, the URL of an emulator, or 0 for none")
    return url(value.strip())


def one_of(words: Sequence[str]) -> Callable[[str], str]:
    """A parser that accepts only these words."""

    def parse(value: str) -> str:
        if value not in words:
            raise ValueError(f"write one of {', '.join(words)}")
        return value

    return parse


def switch(value: str) -> bool:
    """True for 1, true or yes; False for 0, false or no."""
    word = value.strip().lower()
    if word not in _SWITCH:
        raise ValueError("write 1 or 0")
    return _SWITCH[word]


def percentage(value: str) -> Fraction:
    """A percentage, as a fraction."""
    number = value.removesuffix("%").strip()
    # Only with a percent sign: 0.2 could be meant as 20% or as 0.2%.
    if number == value.strip() or not number.replace(".", "", 1).isdecimal():
        raise ValueError("write a percentage of 0 or more, such as 20%")
    from fractions import Fraction  # takes a millisecond, and few runs have such a limit

    return Fraction(number) / 100


def policy(value: str) -> str:
    """A policy for unpriced calls, unchanged."""
    assumed_rates(value)
    return value


def delays(value: str) -> tuple[float, ...]:
    """Seconds after an event, in ascending order; empty for 0. Spaces or commas separate them."""
    try:
        moments = sorted(float(each) for each in value.replace(",", " ").split())
    except ValueError:
        moments = []
    if not moments or not all(0 <= each <= _LATEST_S for each in moments):
        raise ValueError(f"write seconds up to {_LATEST_S}, such as 30 120, or 0 for never")
    return tuple(each for each in moments if each)


def seconds_or_zero(value: str) -> float:
    """Seconds, 0 or more."""
    return _number(
        value, float, lambda s: 0 <= s < math.inf, "write a number of seconds, 0 or more"
    )


def seconds(value: str) -> float:
    """Seconds, more than 0."""
    return _number(value, float, lambda s: 0 < s < math.inf, "write a number of seconds above 0")


def seconds_of_minutes(value: str) -> float:
    """A number of minutes, in seconds."""
    advice = "write a number of minutes above 0"
    return _number(value, float, lambda m: 0 < m < math.inf, advice) * 60


def minutes(value: str) -> int:
    """Whole minutes, at least one."""
    return _number(value, int, lambda m: m >= 1, "write a whole number of minutes, 1 or more")


def days(value: str) -> int:
    """Whole days, 0 for none."""
    return _number(value, int, lambda d: d >= 0, "write a whole number of days, or 0 for no log")


def tokens(value: str) -> int:
    """Whole tokens, at least one."""
    return _number(value, int, lambda n: n >= 1, "write a whole number of tokens, 1 or more")


def _number(text: str, kind: Callable[[str], N], allowed: Callable[[N], bool], advice: str) -> N:
    try:
        number = kind(text)
    except ValueError:
        raise ValueError(advice) from None
    if not allowed(number):
        raise ValueError(advice)
    return number


def full_name(name: str, namespace: str | None) -> str:
    """``namespace/name`` of an endpoint that may be named without its namespace.

    Raises:
        ConfigError: the name has no namespace and none is given, or it is invalid.
    """
    given = name.strip()
    full = f"{namespace}/{given}" if namespace and "/" not in given else given
    if not _NAME.fullmatch(full):
        raise ConfigError(
            f"endpoint {name!r}: write namespace/name, or give the namespace with --hf-namespace"
        )
    return full
