"""Mocks of huggingface_hub's sessions and answers: recognised, and never called."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

# Those that a call's cost depends on.
HEADERS = (
    "x-inference-provider",
    "x-prompt-tokens",
    "x-generated-tokens",
    "x-compute-tokens",
    "x-compute-time",
)


def is_mock(value: object) -> bool:
    """Whether `unittest.mock` made it."""
    mock = sys.modules.get("unittest.mock")
    return mock is not None and isinstance(value, mock.NonCallableMock)


def result_of(make: Any) -> Any:
    """What a function returns; of a mock what it would return, since tests count its calls.

    Raises:
        LookupError: a mock decides that only when it is called.
    """
    if not is_mock(make):
        return make()
    if make.side_effect is not None or make._mock_wraps is not None:
        raise LookupError(make)
    return make.return_value


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
