"""A run that is killed while its endpoint is up."""

from __future__ import annotations

import threading

import pytest
from huggingface_hub import InferenceEndpoint


@pytest.mark.hf_endpoint("demo/llm")
def test_that_hangs(hf_endpoint: InferenceEndpoint) -> None:
    hf_endpoint.client.chat_completion([{"role": "user", "content": "Are you up?"}], max_tokens=5)
    threading.Event().wait()
