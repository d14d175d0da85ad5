"""The fields of a JSON object that a user may have edited: each is checked when it is read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, TypeVar

from pytest_hfbudget.errors import HFBudgetError
from pytest_hfbudget.money import parse_usd
from pytest_hfbudget.text import undirected

T = TypeVar("T")


class ReportFileError(HFBudgetError, ValueError):
    """A file can't be read, is not a report, or has an unknown schema."""


@dataclass(frozen=True)
class JsonFields:
    """A JSON object whose values are checked as they are read.

    Its methods raise `ReportFileError`, which names the place, for a value of another type.
    """

    values: Mapping[str, Any]
    where: str

    @classmethod
    def of(cls, value: object, where: str) -> JsonFields:
        if not isinstance(value, dict):
            raise ReportFileError(f"{where} is not a JSON object")
        return cls(value, where)

    def text(self, key: str) -> str:
        value = self.values.get(key)
        text = "" if value is None else self._checked(key, value, str, "text")
        return undirected(text)

    def count(self, key: str) -> int:
        value = self._checked(key, self.values.get(key, 0), int, "a count")
        if isinstance(value, bool) or value < 0:
            raise self._wrong(key, "a count")
        return value

    def flag(self, key: str) -> bool:
        return self._checked(key, self.values.get(key, False), bool, "true or false")

    def seconds(self, key: str) -> float:
        value = self.values.get(key, 0)
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            raise self._wrong(key, "a number of seconds")
        return float(value)

    def usd(self, key: str) -> int | None:
        if self.values.get(key) is None:
            return None
        try:
            return parse_usd(self.text(key))
        except ValueError:
            raise self._wrong(key, "USD as a decimal string") from None

    def date(self, key: str) -> datetime | None:
        if not (text := self.text(key)):
            return None
        try:
            date = datetime.fromisoformat(text.replace("Z", "+00:00"))
            return (date if date.tzinfo else date.replace(tzinfo=timezone.utc)).astimezone(
                timezone.utc
            )
        except (ValueError, OverflowError):
            raise self._wrong(key, "a date") from None

    def unix_s(self, key: str) -> float | None:
        date = self.date(key)
        return date.timestamp() if date else None

    def inner(self, key: str) -> JsonFields:
        value = self.values.get(key)
        return JsonFields.of({} if value is None else value, f"{self.where}, {key},")

    def texts(self, key: str) -> Iterator[str]:
        for value in self._checked(key, self.values.get(key, []), list, "a list"):
            if not isinstance(value, str):
                raise self._wrong(key, "a list of texts")
            yield undirected(value)

    def each(self, key: str) -> Iterator[JsonFields]:
        values = self._checked(key, self.values.get(key, []), list, "a list")
        for number, value in enumerate(values):
            yield JsonFields.of(value, f"{key}[{number}]")

    def _checked(self, key: str, value: object, kind: type[T], called: str) -> T:
        if not isinstance(value, kind):
            raise self._wrong(key, called)
        return value

    def _wrong(self, key: str, called: str) -> ReportFileError:
        return ReportFileError(f"{self.where}: {key} is not {called}: {self.values.get(key)!r:.80}")
