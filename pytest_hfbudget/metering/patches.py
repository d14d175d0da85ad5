"""Attributes of other people's classes and modules that are wrapped for a while."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

logger = logging.getLogger("pytest_hfbudget")


@dataclass
class Patches:
    """What was replaced, so that it can be put back."""

    _originals: list[tuple[Any, str, Any]] = field(default_factory=list)

    def __bool__(self) -> bool:
        """Whether anything is replaced."""
        return bool(self._originals)

    def replace(self, owner: Any, name: str, wrapper: Any) -> None:
        """Put a wrapper, made by ``functools.wraps``, in place of what it wraps."""
        self._originals.append((owner, name, wrapper.__wrapped__))
        setattr(owner, name, wrapper)

    def restore(self) -> None:
        """Put back what was there, unless somebody has wrapped it since."""
        while self._originals:
            owner, name, original = self._originals.pop()
            installed = vars(owner).get(name)
            if getattr(installed, "__wrapped__", None) is original:
                setattr(owner, name, original)
            else:
                logger.warning("hfbudget left %s as it is: it was wrapped again", name)
