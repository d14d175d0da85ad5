"""Tells other plugins what was charged and refused, and what happened to endpoints.

Everything is on record before anybody is told, and it is told from pytest's own thread. So what a
hook does can't take part in a call, and can't lose a charge.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from pytest_hfbudget.plugin.voice import say

RAISED = (Exception, pytest.fail.Exception, pytest.skip.Exception)


class Announcer:
    """Calls the hooks of one run, each record once, in the order in which it was made."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._told: dict[str, int] = {}
        self._complaints: set[tuple[str, str]] = set()

    def tell(self, hook_name: str, argument: str, records: Callable[[], Sequence[object]]) -> None:
        """Tell what is new among the records; they are not even asked for if nobody listens."""
        hook: Any = getattr(self._config.hook, hook_name)
        if not hook.get_hookimpls():
            return
        every = records()
        while (told := self._told.get(hook_name, 0)) < len(every):
            self._told[hook_name] = told + 1
            self._call_each(hook_name, hook.get_hookimpls(), {argument: every[told]})

    def _call_each(
        self, hook_name: str, impls: Sequence[Any], arguments: dict[str, object]
    ) -> None:
        """Call the plugins one by one, so that one which raises keeps nothing from the others."""
        manager = self._config.pluginmanager
        for impl in impls:
            others = [other.plugin for other in impls if other.plugin is not impl.plugin]
            try:
                manager.subset_hook_caller(hook_name, others)(**arguments)
            except pytest.exit.Exception:
                raise  # somebody wants the run to end
            except RAISED as error:
                self._complain(hook_name, impl.plugin_name, error)

    def _complain(self, hook_name: str, plugin: str, error: BaseException) -> None:
        if (hook_name, plugin) not in self._complaints:
            self._complaints.add((hook_name, plugin))
            said = " ".join(str(error).split())
            text = f"hfbudget: {hook_name} of {plugin} raised {type(error).__name__}: {said}"
            say(self._config, text, yellow=True)
