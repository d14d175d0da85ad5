"""A run that has an endpoint up, and ends in the way that the environment says."""

import faulthandler
import os
import signal
import threading

import pytest

HOW = os.environ["PEERS_ENDING"]


@pytest.mark.hf_endpoint(os.environ["PEERS_ENDPOINT"])
def test_that_ends(hf_endpoint):
    hf_endpoint.client.chat_completion([{"role": "user", "content": "Up?"}], max_tokens=5)
    if HOW == "fail":
        pytest.fail("as any test may")
    elif HOW == "wait":
        threading.Event().wait(60)
    elif HOW == "exit":
        os._exit(1)
    elif HOW == "segfault":
        faulthandler._sigsegv()
    elif HOW == "die":
        os.kill(os.getpid(), signal.SIGKILL)
