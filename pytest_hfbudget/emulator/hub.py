"""The few answers of the Hub that an inference client asks for before it calls a model."""

from __future__ import annotations

from starlette.responses import JSONResponse, Response

from pytest_hfbudget.emulator.exchange import Exchange, Route
from pytest_hfbudget.emulator.routing import mapping
from pytest_hfbudget.emulator.task_names import HF_TASKS


async def model_info(exchange: Exchange) -> Response:
    """A model's page: its task, its tags, and who serves it. There is no model it does not know."""
    world, name = exchange.world, exchange.params["model"]
    task = world.task_of(name)
    tags = {
        "text-generation": ["text-generation", "conversational"],
        # Served for each other on hf-inference, when both are tags.
        "feature-extraction": ["feature-extraction", "sentence-similarity"],
        "sentence-similarity": ["feature-extraction", "sentence-similarity"],
    }.get(task, [task])
    return JSONResponse(
        {
            "_id": "0" * 24,
            "id": name,
            "modelId": name,
            "private": False,
            "pipeline_tag": task,
            "tags": tags,
            "downloads": 0,
            "likes": 0,
            "inferenceProviderMapping": mapping(world.models.get(name), name, task),
        }
    )


async def tasks(_: Exchange) -> Response:
    """Every task, with the model that is recommended for it: `emulator/TASK`."""
    return JSONResponse({task: {"widgetModels": [f"emulator/{task}"]} for task in HF_TASKS})


async def whoami(_: Exchange) -> Response:
    """The owner of any token."""
    return JSONResponse(
        {
            "type": "user",
            "id": "0" * 24,
            "name": "emulator",
            "fullname": "Emulator",
            "isPro": False,
            "orgs": [],
            "auth": {"type": "access_token", "accessToken": {"displayName": "t", "role": "write"}},
        }
    )


ROUTES = [
    Route("GET", "/hub/api/tasks", "tasks", tasks, "public"),
    Route("GET", "/hub/api/whoami-v2", "whoami", whoami),
    Route("GET", "/hub/api/models/{model:path}", "model_info", model_info, "public"),
]
