"""Mocks and answers written by hand: whatever they return, no call and no record breaks."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock, MagicMock, Mock, patch

import huggingface_hub
import pytest
from metering_bench import Bench, say
from replaying import ANSWER, QUESTION, USAGE

from pytest_hfbudget.history.usage_log import LoggedRun, UsageLog, entries
from pytest_hfbudget.ledger import Charge, rpc
from pytest_hfbudget.reporting import Report
from pytest_hfbudget.reporting.json_report import as_json

BEFORE_1 = huggingface_hub.__version__.startswith("0.")
BODY = json.dumps(ANSWER).encode()
TEXT = [f"data: {json.dumps({**ANSWER, 'choices': []})}", "data: [DONE]"]
LINES = [line.encode() for line in TEXT] if BEFORE_1 else TEXT


def session_answering(response: Any) -> Any:
    """A session that answers everything with this, as huggingface_hub asks it."""
    session = MagicMock()
    session.post.return_value = response
    session.stream.return_value.__enter__.return_value = response
    return session


def mock_response(**attributes: Any) -> Any:
    """What `MagicMock` makes of an answer: whatever it is asked for is another mock."""
    response = MagicMock(status_code=200, content=BODY, **attributes)
    response.read.return_value = BODY
    response.iter_lines.return_value = iter(LINES)
    return response


def by_hand(**attributes: Any) -> Any:
    """An answer with as little as huggingface_hub asks for."""
    return SimpleNamespace(
        status_code=200,
        content=BODY,
        read=lambda: BODY,
        iter_lines=lambda: iter(LINES),
        raise_for_status=lambda: None,
        request=None,
        **attributes,
    )


ODD_HEADERS = {"x-inference-provider": 7, "x-compute-time": [], "x-compute-tokens": object()}
RESPONSES: dict[str, Callable[[], Any]] = {
    "a mock": mock_response,
    "a mock of nothing": lambda: mock_response(headers=None),
    "headers that are no strings": lambda: mock_response(headers=ODD_HEADERS),
    "by hand, without headers": by_hand,
    "by hand, headers of none": lambda: by_hand(headers=None),
    "by hand, headers that raise": lambda: by_hand(headers=Mock(get=Mock(side_effect=OSError))),
}


@contextmanager
def answering(response: Any) -> Iterator[Any]:
    with patch("huggingface_hub.inference._client.get_session") as get_session:
        get_session.return_value = session_answering(response)
        yield get_session


def assert_on_record(bench: Bench, tmp_path: Path) -> None:
    """Everything that is made of the charges can be: the report, the log, what workers send."""
    charges = bench.ledger.charges()
    report = Report.of(bench.ledger, None, {})
    json.dumps(as_json(report))
    for charge in charges:
        assert Charge.read(rpc.decode(rpc.encode(charge))) == charge
    run = LoggedRun("run", "project", 0.0, 1.0)
    UsageLog(tmp_path / "log.sqlite3").write(run, entries(report, run), keep_days=9)


@pytest.mark.parametrize("cap", [None, 1])
@pytest.mark.parametrize("response", RESPONSES.values(), ids=RESPONSES)
@pytest.mark.parametrize("stream", [False, True])
def test_whatever_a_mocked_session_answers_the_call_goes_on(
    bench: Bench, tmp_path: Path, response: Callable[[], Any], cap: int | None, stream: bool
) -> None:
    if cap is not None:
        bench.cap(cap)
    client = bench.client(provider="groq")
    with answering(response()):
        answer = client.chat_completion(say(1), max_tokens=20, stream=stream)
        if stream:
            list(answer)
    charge = bench.ledger.charges()[-1]
    assert (charge.replayed, charge.nano_usd, charge.provider) == (True, 0, "groq")
    assert (charge.input_tokens, charge.output_tokens) == (9, 10)
    assert (bench.held, bench.sent) == (0, 0)
    assert_on_record(bench, tmp_path)


def test_a_mock_is_called_as_often_as_without_the_plugin(bench: Bench) -> None:
    bench.cap(1)
    client = bench.client(provider="groq")
    with answering(mock_response()) as get_session:
        client.chat_completion(say(1), max_tokens=20)
        get_session.assert_called_once_with()


def async_answering(client: Any, response: Any) -> Any:
    """Have an async client answered by a mock in the place where its session is made."""
    session = MagicMock()
    session.post = AsyncMock(return_value=response)
    session.close = AsyncMock()
    if BEFORE_1:
        return patch.object(client, "_get_client_session", MagicMock(return_value=session))
    return patch.object(client, "_get_async_client", AsyncMock(return_value=session))


@pytest.mark.parametrize("cap", [None, 1])
def test_a_mock_in_place_of_an_async_session_is_free_and_called_once(
    bench: Bench, tmp_path: Path, cap: int | None
) -> None:
    if cap is not None:
        bench.cap(cap)
    response = MagicMock(
        status_code=200, status=200, content=BODY, read=AsyncMock(return_value=BODY)
    )

    async def main() -> None:
        client = bench.async_client(provider="groq")
        with async_answering(client, response) as make_session:
            await client.chat_completion(say(1), max_tokens=20)
            make_session.assert_called_once()

    asyncio.run(main())
    (charge,) = bench.ledger.charges()
    assert (charge.provider, charge.output_tokens, bench.held) == ("groq", 10, 0)
    if not BEFORE_1:  # where the session's class is looked at, since each call makes one
        assert charge.replayed
    assert_on_record(bench, tmp_path)


ABSURD: dict[str, dict[str, Any]] = {
    "numbers beyond all reason": {"usage": dict.fromkeys(USAGE, 10**30)},
    "numbers as words": {"usage": dict.fromkeys(USAGE, "many")},
    "a list": {"usage": [1, 2]},
    "details that are none": {"usage": {**USAGE, "prompt_tokens_details": 7}},
    "choices that are none": {"choices": 7, "usage": None},
    "a nest": {"usage": None, "nest": json.loads("[" * 900 + "]" * 900)},
}


@pytest.mark.parametrize("cap", [None, 1])
@pytest.mark.parametrize("wrong", ABSURD.values(), ids=ABSURD)
@pytest.mark.parametrize("stream", [False, True])
def test_an_absurd_answer_reaches_the_caller_and_is_on_record(
    bench: Bench, tmp_path: Path, wrong: dict[str, Any], cap: int | None, stream: bool
) -> None:
    if cap is not None:
        bench.cap(cap)
    body = json.dumps({**ANSWER, **wrong})
    response = mock_response()
    response.content = response.read.return_value = body.encode()
    response.iter_lines.return_value = iter([f"data: {body}"])
    parameters = parameters_of(bench)
    with answering(response):
        answer = bench.client()._inner_post(parameters, stream=stream)
        if stream:
            assert list(answer) == [f"data: {body}"]
        else:
            assert answer == body.encode()
    assert bench.ledger.charges()[-1].replayed
    assert bench.held == 0
    assert_on_record(bench, tmp_path)


def parameters_of(bench: Bench) -> Any:
    """What huggingface_hub posts for a question."""
    caught: list[Any] = []

    def catch(self: Any, parameters: Any, **options: Any) -> bytes:
        caught.append(parameters)
        return BODY

    client = bench.client(provider="groq")
    with patch.object(type(client), "_inner_post", catch):
        client.chat_completion(QUESTION, max_tokens=20)
    return caught[0]


@pytest.mark.parametrize("lines", [[7, None, b"data: {}", {}], 7, None], ids=repr)
def test_lines_of_a_stream_may_be_anything(bench: Bench, lines: Any) -> None:
    bench.cap(1)
    response = mock_response()
    response.iter_lines.return_value = lines
    parameters = parameters_of(bench)
    with answering(response):
        answer = bench.client()._inner_post(parameters, stream=True)
        assert answer is lines or list(answer) == lines
    assert bench.ledger.charges()[-1].nano_usd == bench.held == 0


PARAMETERS: dict[str, Callable[[Any], Any]] = {
    "a mock": lambda real: MagicMock(),
    "nothing": lambda real: None,
    "a mock with its URL": lambda real: MagicMock(url=real.url),
    "a plain object": lambda real: SimpleNamespace(**vars(real)),
    "a task that is none": lambda real: SimpleNamespace(**{**vars(real), "task": None}),
    "a model that is none": lambda real: SimpleNamespace(**{**vars(real), "model": MagicMock()}),
    "a payload that is a mock": lambda real: SimpleNamespace(
        **{**vars(real), "json": {"messages": MagicMock()}}
    ),
}


@pytest.mark.parametrize("make", PARAMETERS.values(), ids=PARAMETERS)
def test_parameters_that_a_test_has_made_break_no_call(
    bench: Bench, tmp_path: Path, make: Callable[[Any], Any]
) -> None:
    made = make(parameters_of(bench))
    client = bench.client(provider="groq")
    helper = "huggingface_hub.inference._providers._common.TaskProviderHelper.prepare_request"
    with answering(mock_response()), patch(helper, MagicMock(return_value=made)):
        if made is None:  # as without the plugin
            with pytest.raises(AttributeError):
                client.chat_completion(say(1), max_tokens=20)
        else:
            client.chat_completion(say(1), max_tokens=20)
    assert_on_record(bench, tmp_path)


def test_a_mock_in_the_place_of_the_clock_breaks_no_record(bench: Bench, tmp_path: Path) -> None:
    client = bench.client(provider="groq")
    with answering(mock_response()), patch("time.time"):
        client.chat_completion(say(1), max_tokens=20)
    assert_on_record(bench, tmp_path)


def test_an_error_may_be_anything(bench: Bench) -> None:
    class OddError(Exception):
        @property
        def response(self) -> Any:
            raise RuntimeError("there is none")

        reason = property(lambda self: MagicMock())

    bench.cap(1)
    client = bench.client(provider="groq")
    response = mock_response()
    response.raise_for_status.side_effect = OddError("odd")
    with answering(response), pytest.raises(OddError):
        client.chat_completion(say(1), max_tokens=20)
    assert bench.held == bench.spent == 0
