"""Runs of pytest with the plugins that they need: importing all others is half of a short run."""

from __future__ import annotations

from collections.abc import Iterable

OURS = "pytest_hfbudget.plugin"
BY_OPTION = {
    "-n": "xdist.plugin",
    "--dist": "xdist.plugin",
    "--reruns": "pytest_rerunfailures",
    "--timeout": "pytest_timeout",
    "--record-mode": "pytest_recording.plugin",
    "--block-network": "pytest_recording.plugin",
    "--disable-recording": "pytest_recording.plugin",
    "--disable-socket": "pytest_socket",
}


def lean(options: Iterable[str]) -> dict[str, str]:
    """The variables with which pytest loads our plugin, and those whose options are given."""
    given = list(options)
    wanted = [OURS]
    for option, plugin in BY_OPTION.items():
        if plugin not in wanted and any(each.startswith(option) for each in given):
            wanted.append(plugin)
    return {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_PLUGINS": ",".join(wanted)}
