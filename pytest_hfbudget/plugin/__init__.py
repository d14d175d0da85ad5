"""The pytest plugin: glue, nothing more.

Kept light on purpose: what costs time to import waits until a test run touches Hugging Face.
"""

from __future__ import annotations

from functools import partial

import pytest

from pytest_hfbudget.errors import HFBudgetError
from pytest_hfbudget.plugin import options
from pytest_hfbudget.plugin.console import CostOnLine
from pytest_hfbudget.plugin.fixtures import hf_budget, hf_endpoint, hf_endpoints
from pytest_hfbudget.plugin.github_job import GitHub
from pytest_hfbudget.plugin.hooks import Hooks
from pytest_hfbudget.plugin.run import RUN, Run

__all__ = ["hf_budget", "hf_endpoint", "hf_endpoints"]


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Add the hooks that others may implement."""
    from pytest_hfbudget.plugin import hookspecs

    pluginmanager.add_hookspecs(hookspecs)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add options and ini settings."""
    options.add(parser)


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """From now on calls are held and counted: conftest files may make some."""
    given = early_config.known_args_namespace
    try:
        Run.early(early_config)
    except HFBudgetError as error:
        if not (given.help or given.version):
            raise pytest.UsageError(str(error)) from None


def pytest_configure(config: pytest.Config) -> None:
    """Read the settings, and wait until huggingface_hub is imported."""
    options.register_markers(config)
    if config.getoption("help", False) or config.getoption("version", False):
        return  # nothing runs, and a wrong setting must not stand in the way of its explanation
    try:
        options.check_rootdir(config)
        run = Run.of(config)
        run.open()
    except HFBudgetError as error:
        raise pytest.UsageError(str(error)) from None
    if run.settings.plan:
        config.option.dist = "no"  # xdist configures itself after this; a plan needs no workers
    config.pluginmanager.register(Hooks(run), "hfbudget-run")
    config.add_cleanup(run.role.last_words)  # after `pytest_unconfigure`, where others speak too
    if config.get_verbosity() > 0:
        config.pluginmanager.register(
            CostOnLine(partial(run.attribution.note_cost, last=False)), "hfbudget-cost-on-line"
        )
    if (github := GitHub.of(run)) is not None:
        config.pluginmanager.register(github, "hfbudget-github")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Whatever ended the session before its own end: pause, report, clean up."""
    if (run := config.stash.get(RUN, None)) is not None and run.opened:
        run.close()
