"""The headers of answers that come through aiohttp: huggingface_hub's async client before 1.0.

It shows a response to nobody else on its way, so the session itself is asked to tell.
"""

from __future__ import annotations

import functools
from importlib import import_module
from typing import Any

from pytest_hfbudget.metering.mocks import Headers
from pytest_hfbudget.metering.traffic import Note, noting


def noting_session(original: Any) -> Any:
    """``AsyncInferenceClient._get_client_session``, with sessions that tell of their responses."""

    @functools.wraps(original)
    def _get_client_session(self: Any, *args: Any, **kwargs: Any) -> Any:
        session = original(self, *args, **kwargs)
        note, told = noting(), getattr(session, "trace_configs", None)
        if note is not None and isinstance(told, list):  # a mock has something else
            told.append(_trace(note))
        return session

    return _get_client_session


def _trace(note: Note) -> Any:
    trace = import_module("aiohttp").TraceConfig()  # imported already, by whoever made the session

    async def answered(session: object, context: object, end: Any) -> None:
        note(Headers(end.response))

    trace.on_request_end.append(answered)
    trace.freeze()
    return trace
