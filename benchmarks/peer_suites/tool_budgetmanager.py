"""litellm's BudgetManager: the code asks it before each call, and tells it the answer."""

from contextlib import nullcontext

import litellm
from common import CAP, QUESTION, join
from tool_litellm import ASK, NAME

__all__ = ["ask", "ask_async", "budget", "join", "stream", "worker_budget"]
USER = "tests"
manager = litellm.BudgetManager(project_name="tests")
if not manager.is_valid_user(USER):
    manager.create_budget(total_budget=float(CAP), user=USER)
budget = worker_budget = nullcontext


def check():
    if manager.get_current_cost(USER) > manager.get_total_budget(USER):
        raise RuntimeError("no budget is left")


def ask():
    check()
    manager.update_cost(completion_obj=litellm.completion(**ASK), user=USER)


def stream():
    check()
    chunks = litellm.completion(**ASK, stream=True)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    manager.update_cost(model=NAME, input_text=QUESTION, output_text=text, user=USER)


async def ask_async():
    check()
    manager.update_cost(completion_obj=await litellm.acompletion(**ASK), user=USER)
