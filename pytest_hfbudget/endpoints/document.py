"""A public document: read without a token, by the same way through proxies as all the rest."""

from __future__ import annotations

from pytest_hfbudget.endpoints.transport import NoAnswerError, Route, Urllib3Transport
from pytest_hfbudget.version import __version__

_OK = 200
_TRIES = 2


def read_document(url: str, *, within_s: float) -> bytes:
    """What a URL answers with, after a second try where the first had no answer.

    Args:
        within_s: the most that connecting may take, and again the whole answer, of both tries.

    Raises:
        OSError: it did not answer, or not with 200.
    """
    transport = Urllib3Transport(Route.find(url))
    headers = {
        "accept": "application/json",
        "user-agent": f"pytest-hfbudget/{__version__} (prices)",
    }
    for left in reversed(range(_TRIES)):
        try:
            answer = transport.send("GET", url, headers, None, within_s / _TRIES)
        except NoAnswerError as error:
            if error.lasting or not left:
                raise OSError(str(error)) from None
            continue
        if answer.status == _OK:
            return answer.body
        raise OSError(f"status {answer.status}")
    raise OSError("no answer")
