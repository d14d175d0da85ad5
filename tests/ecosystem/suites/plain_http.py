"""A suite that posts by hand, and does not mention this plugin."""

import asyncio
import json
from contextlib import suppress

import aiohttp
import httpx
import httpx2
import pytest
import requests

URL = "https://router.huggingface.co/v1/chat/completions"
TOKEN = {"Authorization": "Bearer hf_user"}
QUESTION = {"role": "user", "content": "Say something. [[tokens=20]]"}
ASK = {"model": "emulator/chat:groq", "messages": [QUESTION], "max_tokens": 50}
STREAM = {**ASK, "stream": True}
STEPS = 12


def said(lines):
    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)


@pytest.mark.parametrize("library", [httpx, httpx2, requests], ids=lambda each: each.__name__)
def test_answer(library):
    answer = library.post(URL, json=ASK, headers=TOKEN)
    assert answer.json()["choices"][0]["message"]["content"]


@pytest.fixture
def client():
    with httpx.Client() as one:  # it reads certificates, which takes its time
        yield one


def test_answer_again(client):
    assert client.post(URL, json=ASK, headers=TOKEN).json()["choices"]


@pytest.mark.parametrize("library", [httpx, httpx2], ids=lambda each: each.__name__)
def test_stream(library):
    with library.stream("POST", URL, json=STREAM, headers=TOKEN) as answer:
        assert said(answer.iter_lines())


def test_stream_of_requests():
    with requests.post(URL, json=STREAM, headers=TOKEN, stream=True) as answer:
        assert said(line.decode() for line in answer.iter_lines())


@pytest.mark.parametrize("library", [httpx, httpx2], ids=lambda each: each.__name__)
def test_async_answers_at_a_time(library):
    async def main():
        async with library.AsyncClient() as client:
            asked = (client.post(URL, json=ASK, headers=TOKEN) for _ in range(4))
            return await asyncio.gather(*asked)

    assert all(answer.json()["choices"] for answer in asyncio.run(main()))


def test_answer_of_aiohttp():
    async def main():
        async with aiohttp.ClientSession() as session:
            async with session.post(URL, json=ASK, headers=TOKEN) as answer:
                return await answer.json()

    assert asyncio.run(main())["choices"]


def test_stream_of_aiohttp():
    async def main():
        async with aiohttp.ClientSession() as session:
            async with session.post(URL, json=STREAM, headers=TOKEN) as answer:
                return [line.decode().strip() async for line in answer.content]

    assert said(asyncio.run(main()))


def test_agent():
    messages = []
    with requests.Session() as session:
        for _ in range(STEPS):
            messages.append(QUESTION)
            answer = session.post(URL, json={**ASK, "messages": messages}, headers=TOKEN)
            messages.append(answer.json()["choices"][0]["message"])
    assert len(messages) == 2 * STEPS


def test_swallowing():
    with suppress(Exception):  # no answer is no reason for this test to fail
        requests.post(URL, json=ASK, headers=TOKEN)
