"""A process that is not the owner of its run, and leaves to the owner what is the run's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pytest_hfbudget.plugin.recording import Recording


class Follower:
    """The part of `Role` that is the same for all of them: nothing."""

    def open(self) -> None:
        """The owner has checked everything."""

    def standing(self) -> tuple[str, ...]:
        return ()

    def planned(self) -> None:
        """Said by the owner."""

    def begin(self) -> None:
        """Done by the owner."""

    def announce(self) -> None:
        """Hooks are told by the owner."""

    def between(self) -> None:
        """The owner looks after the keeper."""

    def ask_pause(self) -> None:
        """Others may still need what is running."""

    def finish(self, outcomes: Mapping[str, str]) -> bool:
        return True

    def record(self, recording: Recording, session: pytest.Session) -> None:
        """Done by the owner."""

    def summarise(self, terminal: Any, outcomes: Mapping[str, str]) -> None:
        """Shown by the owner."""

    def last_words(self) -> None:
        """Said by the owner."""

    def serve(self) -> dict[str, Any]:
        raise RuntimeError("only the owner of a run has workers")
