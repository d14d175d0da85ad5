"""A stream as the user expects it. It is settled once: at its end, on an error, or when dropped.

A stream that is never read has been sent, too, and is billed. So these are objects, not generators:
a generator that was never started runs no ``finally`` when it is collected.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any

from pytest_hfbudget.errors import BudgetExceededError, HFBudgetError
from pytest_hfbudget.metering.call import Call
from pytest_hfbudget.metering.usage import (
    UNREADABLE_ANSWER,
    finished,
    finished_by_length,
    inner,
    usage_of,
    writes,
    written_bytes,
)
from pytest_hfbudget.pricing import Usage
from pytest_hfbudget.text import parse_json

logger = logging.getLogger("pytest_hfbudget")


class StreamAccounting:
    """Reads the usage in each chunk of one stream, and settles its call.

    Attributes:
        broken: whether the server said that it failed, so that no more will come.
    """

    def __init__(self, call: Call) -> None:
        self.call = call
        self.broken = False
        self._done = False
        self._cut = False
        self._ended: set[str] = set()
        self._stale = False

    def read_line(self, line: str | bytes) -> bool:
        """Read one SSE line, and return whether the caller gets to see it.

        Raises:
            BudgetExceededError: the answer was cut off by the limit that a cap had set.
        """
        text = line.decode("utf-8", "replace") if isinstance(line, bytes) else line
        if not isinstance(text, str) or not text.startswith("data:"):
            return True
        data = text[5:].strip()
        if data == "[DONE]":
            self.finish()
            return True
        try:
            return self._chunk(_parse(data))
        except HFBudgetError:
            raise
        except Exception:
            logger.exception(UNREADABLE_ANSWER)
            return True

    def finish(self) -> None:
        """Settle a stream that came to its end.

        Raises:
            BudgetExceededError: it came to its end because of the limit that a cap had set.
        """
        self._done = True
        if self._stale:
            self.call.outcome.usage = None
        self.call.settle("200")
        if self._cut:
            self._cut = False
            raise self.call.cut_off()

    def ended(self) -> None:
        """Settle a stream that has no more lines; it may have been cut off.

        Raises:
            BudgetExceededError: as `finish`.
        """
        if self._done or self.call.outcome.complete:
            self.finish()
        else:
            self._done = True
            self.call.lost("lost")

    def failed(self, error: BaseException) -> None:
        """Settle a stream that has ended with an error."""
        self._done = True
        self.call.failed(error)

    def dropped(self) -> None:
        """Settle a stream that was garbage-collected, later: a lock may be held now."""
        if not self._done:
            self._done = True
            self.call.drop()

    def _take(self, usage: Usage | None, *, written: bool) -> None:
        """Keep the usage of a chunk. The last one counts, but no count gets smaller.

        Args:
            written: whether the chunk has text, which an earlier usage does not include.
        """
        outcome = self.call.outcome
        if usage is None:
            self._stale = self._stale or (written and outcome.usage is not None)
            return
        self._stale = False
        if (before := outcome.usage) is not None:
            usage = usage._replace(
                input_tokens=max(usage.input_tokens, before.input_tokens),
                output_tokens=max(usage.output_tokens, before.output_tokens),
            )
        outcome.usage = usage

    def _chunk(self, chunk: dict[str, Any]) -> bool:
        if chunk.get("error") is not None or chunk.get("type") == "error":
            self._done = self.broken = True
            self.call.lost("error")
            return True
        usage = usage_of(inner(chunk), self.call.request)
        self._take(usage, written=writes(chunk))
        details = chunk.get("details")
        if isinstance(details, dict) and details.get("generated_tokens"):
            self.call.outcome.written = written_bytes(
                chunk
            )  # the server's own count of all of them
        else:
            self.call.outcome.written += written_bytes(chunk)
        self._ended |= finished(chunk)
        whole = len(self._ended) >= self.call.request.n
        self.call.outcome.complete = whole and not self._stale
        self._cut = self._cut or (bool(self.call.limit) and finished_by_length(inner(chunk)))
        if self._cut and usage:
            self.finish()
        # After the cut the caller sees nothing more, but the usage that may follow is still read.
        own = usage and self.call.swallow_usage and not chunk.get("choices")
        return not (self._cut or own)


def _parse(data: str) -> dict[str, Any]:
    try:
        chunk = parse_json(data)
    except ValueError:
        return {}
    return chunk if isinstance(chunk, dict) else {}


class MeteredStream(Iterator[Any]):
    """The lines of a sync stream."""

    def __init__(self, call: Call, lines: Any) -> None:
        self._accounting = StreamAccounting(call)
        self._iterator = iter(lines)

    def __next__(self) -> Any:
        while True:
            try:
                line = next(self._iterator)
            except StopIteration:
                self._accounting.ended()
                raise
            except BaseException as error:
                self._accounting.failed(error)
                raise
            if self._accounting.read_line(line):
                if self._accounting.broken:
                    self._hang_up()
                return line

    def close(self) -> None:
        """Stop reading; what was not settled yet is settled now."""
        self._hang_up()
        self._accounting.call.close()

    def _hang_up(self) -> None:
        close = getattr(self._iterator, "close", None)
        if close is not None:
            close()

    def __del__(self) -> None:
        self._accounting.dropped()


class MeteredAsyncStream(AsyncIterator[Any]):
    """The lines of an async stream."""

    def __init__(self, call: Call, lines: Any) -> None:
        self._accounting = StreamAccounting(call)
        self._iterator = lines.__aiter__()

    async def __anext__(self) -> Any:
        while True:
            try:
                line = await self._iterator.__anext__()
            except StopAsyncIteration:
                self._accounting.ended()
                raise
            except BaseException as error:
                self._accounting.failed(error)
                raise
            if self._accounting.read_line(line):
                if self._accounting.broken:
                    await self._hang_up()
                return line

    async def aclose(self) -> None:
        """Stop reading; what was not settled yet is settled now."""
        await self._hang_up()
        self._accounting.call.close()

    async def _hang_up(self) -> None:
        close = getattr(self._iterator, "aclose", None)
        if close is not None and inspect.isawaitable(closing := close()):
            await closing

    def __del__(self) -> None:
        self._accounting.dropped()


def settle_whole(call: Call, body: bytes) -> None:
    """Settle an answer that came in one piece.

    Raises:
        BudgetExceededError: it was cut off by the limit that a cap had set.
    """
    call.outcome.answer = body
    try:
        call.answered(body)
    except HFBudgetError:
        raise
    except Exception:
        logger.exception(UNREADABLE_ANSWER)
        call.lost("200")


class AnswerBody:
    """The body of an answer while it is read: takes its bytes, and returns those for the caller.

    Args:
        events: whether it is a stream of events, which are read one by one. Any other body is kept
            until its end, where its usage is.
    """

    def __init__(self, call: Call, *, events: bool) -> None:
        self.events = events
        self._call = call
        self._accounting = StreamAccounting(call)
        self._kept = bytearray()
        self._refusal: BudgetExceededError | None = None
        self._ended = False

    def feed(self, data: bytes) -> bytes:
        """Take the bytes that came, and return the bytes for the caller.

        Raises:
            BudgetExceededError: the answer was cut off by the limit that a cap had set.
        """
        self._raise_refusal()
        self._kept += data
        if not self.events:
            return data
        *lines, rest = bytes(self._kept).splitlines(keepends=True) or [b""]
        if rest.endswith((b"\n", b"\r")):
            lines, rest = [*lines, rest], b""
        self._kept = bytearray(rest)
        shown = []
        for line in lines:
            try:
                if self._accounting.read_line(line):
                    shown.append(line)
            except BudgetExceededError as error:
                self._refusal = error
                break
        if not shown:
            self._raise_refusal()
        return b"".join(shown)

    def end(self) -> bytes:
        """Settle at the end of the answer, and return the last bytes for the caller.

        Raises:
            BudgetExceededError: as `feed`.
        """
        self._raise_refusal()
        if self._ended:
            return b""
        self._ended = True
        if not self.events:
            settle_whole(self._call, bytes(self._kept))
            return b""
        rest, self._kept = bytes(self._kept), bytearray()
        shown = self._accounting.read_line(rest)
        self._accounting.ended()
        return rest if shown else b""

    def failed(self, error: BaseException) -> None:
        """Settle an answer that has ended with an error."""
        self._ended = True
        self._accounting.failed(error)

    def close(self) -> None:
        """Settle an answer that its caller reads no further."""
        if not self._ended:
            self._ended = True
            self._call.close()

    def dropped(self) -> None:
        """Settle an answer that was garbage-collected, later: a lock may be held now."""
        if not self._ended:
            self._ended = True
            self._accounting.dropped()

    def _raise_refusal(self) -> None:
        if self._refusal is not None:
            self._ended = True
            raise self._refusal
