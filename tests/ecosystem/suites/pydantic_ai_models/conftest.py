"""What Pydantic AI's own suite has around its tests of models: cassettes, anyio, blockbuster."""

import json

import pydantic_ai.models
import pytest
import yaml
from blockbuster import blockbuster_ctx

# No test may reach a service by mistake; a test that plays a cassette asks for it.
pydantic_ai.models.ALLOW_MODEL_REQUESTS = False


class ReadableBodies:
    """Cassettes whose JSON bodies are YAML as well."""

    @staticmethod
    def deserialize(text):
        cassette = yaml.safe_load(text)
        for interaction in cassette["interactions"]:
            for message in interaction["request"], interaction["response"]:
                if "parsed_body" in message:
                    message["body"] = json.dumps(message.pop("parsed_body"))
            response = interaction["response"]
            response["body"] = {"string": response["body"].encode()}
        return cassette

    @staticmethod
    def serialize(cassette):
        raise NotImplementedError("these cassettes are only played")


def pytest_recording_configure(config, vcr):
    vcr.register_serializer("yaml", ReadableBodies)


@pytest.fixture(scope="module")
def vcr_config():
    return {
        "ignore_localhost": True,
        "filter_headers": ["authorization", "x-api-key"],
        "decode_compressed_response": True,
    }


@pytest.fixture(scope="session")
def anyio_backend():
    return "asyncio"


@pytest.fixture(autouse=True)
async def no_call_blocks_the_event_loop(anyio_backend):
    with blockbuster_ctx():
        yield


@pytest.fixture
def allow_model_requests():
    with pydantic_ai.models.override_allow_model_requests(True):
        yield
