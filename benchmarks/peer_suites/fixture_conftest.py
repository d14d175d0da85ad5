"""What people write who have no plugin: resume, yield, pause."""

import os

import huggingface_hub
import pytest
from huggingface_hub import constants

constants.INFERENCE_ENDPOINTS_ENDPOINT = os.environ["PEERS_ENDPOINTS_API"]


def pytest_configure(config):
    config.addinivalue_line("markers", "hf_endpoint(name): the endpoint that a test uses")


@pytest.fixture(scope="session")
def hf_endpoint():
    namespace, name = os.environ["PEERS_ENDPOINT"].split("/")
    endpoint = huggingface_hub.get_inference_endpoint(name, namespace=namespace)
    endpoint.resume().wait(timeout=60, refresh_every=0.1)
    yield endpoint
    endpoint.pause()
