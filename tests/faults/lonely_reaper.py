"""A reaper whose interpreter can import this package and its HTTP client, and nothing else.

Given with ``-p lonely_reaper``: what a run hands to its reaper is a folder with two links.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_configure() -> None:
    """Put it up for the process that starts reapers; the imports come late on purpose."""
    import urllib3

    import pytest_hfbudget
    from pytest_hfbudget.endpoints import reaper_processes

    folder = Path(os.environ["FAULTS_BOX"]).parent / "importable"
    folder.mkdir(exist_ok=True)
    for package in (pytest_hfbudget, urllib3):
        link = folder / package.__name__
        if not link.is_symlink():
            link.symlink_to(Path(str(package.__file__)).parent)
    reaper_processes.import_paths = lambda: [str(folder)]
