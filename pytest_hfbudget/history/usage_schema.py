"""The tables of the usage log, step by step as releases have added to them."""

from __future__ import annotations

from pytest_hfbudget.history.database import Schema
from pytest_hfbudget.history.prompt_tokens import PROMPT_TOKENS

_FIRST = (
    """
    CREATE TABLE run (
        run TEXT PRIMARY KEY,
        project TEXT NOT NULL,
        started REAL NOT NULL,
        ended REAL NOT NULL
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE entry (
        run TEXT NOT NULL,
        at REAL NOT NULL,
        kind TEXT NOT NULL,
        test TEXT,
        place TEXT NOT NULL,
        task TEXT NOT NULL,
        model TEXT NOT NULL,
        provider TEXT,
        endpoint TEXT,
        input_tokens INTEGER NOT NULL,
        output_tokens INTEGER NOT NULL,
        minutes INTEGER NOT NULL,
        nano_usd INTEGER,
        price_source TEXT NOT NULL,
        status TEXT NOT NULL,
        estimated INTEGER NOT NULL,
        seconds REAL NOT NULL
    )
    """,
    "CREATE INDEX entry_at ON entry (at)",
    "CREATE INDEX entry_run ON entry (run)",
)
_SECOND = (
    "ALTER TABLE run ADD COLUMN session_id TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE entry ADD COLUMN session_id TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE entry ADD COLUMN cached_tokens INTEGER NOT NULL DEFAULT 0",
    # What was reported of a run's session: read_at is when, in unix seconds.
    """
    CREATE TABLE bill (
        run TEXT PRIMARY KEY,
        billed_nano_usd INTEGER NOT NULL,
        requests INTEGER NOT NULL,
        read_at REAL NOT NULL
    ) WITHOUT ROWID
    """,
)

_DURATIONS = (
    """
    CREATE TABLE duration (
        project TEXT NOT NULL,
        kind TEXT NOT NULL,
        name TEXT NOT NULL,
        seconds REAL NOT NULL,
        at REAL NOT NULL,
        PRIMARY KEY (project, kind, name)
    ) WITHOUT ROWID
    """,
)

SCHEMA = Schema(
    steps=(_FIRST, PROMPT_TOKENS, _DURATIONS, _SECOND),
    remedy=(
        "Make it readable and writable, or move it aside; "
        "HFBUDGET_STATE_DIR names another folder, and hf_log_days = 0 keeps no log."
    ),
)
