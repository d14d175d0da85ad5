"""The table of the usage log that has what servers have counted in prompts."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterable
from typing import Any

from pytest_hfbudget.metering.prompts import ALIKE, DOUBT, FORGET, RULE, Fact
from pytest_hfbudget.metering.usage import MOST_TOKENS

# What servers have counted of prompts; ``rule`` is the one that hashes are made by.
PROMPT_TOKENS = (
    """
    CREATE TABLE prompt_tokens (
        model TEXT NOT NULL,
        provider TEXT NOT NULL,
        key TEXT NOT NULL,
        tokens INTEGER NOT NULL,
        rule INTEGER NOT NULL,
        seen REAL NOT NULL,
        PRIMARY KEY (model, provider, key)
    ) WITHOUT ROWID
    """,
)

LEARNED = "SELECT model, provider, key, tokens FROM prompt_tokens WHERE model = ? AND rule = ?"
_FORGET = "DELETE FROM prompt_tokens WHERE model = ? AND provider = ? AND seen < ?"
_KEEP = "INSERT OR REPLACE INTO prompt_tokens VALUES (?, ?, ?, ?, ?, ?)"


def learn(
    connection: sqlite3.Connection, learned: Iterable[Fact], started: float, ended: float
) -> None:
    """Put what a run has learned over what was known; a doubt leaves nothing beside it.

    Servers that are addressed by URL are left out: another model may be there tomorrow.

    Args:
        started, ended: of the run, in unix seconds.
    """
    doubted: set[tuple[str, str]] = set()
    for fact in learned:
        provider = fact.model, fact.provider
        if fact.model.startswith("http") or fact.key == ALIKE or provider in doubted:
            continue
        if fact.key in (FORGET, DOUBT):
            since = started if fact.key == FORGET else math.inf
            connection.execute(_FORGET, (*provider, since))
        if fact.key == DOUBT:
            doubted.add(provider)
        if fact.key != FORGET:
            connection.execute(_KEEP, (*fact, RULE, ended))


def facts(rows: Iterable[tuple[Any, ...]]) -> tuple[Fact, ...]:
    """What `LEARNED` finds, without rows that are not as this release writes them."""
    return tuple(Fact(*row) for row in rows if _is_fact(*row))


def _is_fact(model: object, provider: object, key: object, tokens: object) -> bool:
    """Whether a row is as this release writes it."""
    texts = isinstance(model, str) and isinstance(provider, str) and isinstance(key, str)
    return texts and key != "" and isinstance(tokens, int) and 0 <= tokens < MOST_TOKENS
