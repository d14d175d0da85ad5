"""A plugin that takes away what Windows has not, before pytest-hfbudget is imported.

Libraries of others choose by the platform, so they are imported before that.
"""

from __future__ import annotations

import os
import select
import selectors
import signal
import socket
import sys
from contextlib import suppress
from importlib import import_module
from typing import Any

OTHERS = (
    "anyio",
    "asyncio",
    "execnet",
    "httpcore",
    "httpcore2",
    "httpx",
    "httpx2",
    "huggingface_hub.inference._client",
    "multiprocessing",
    "platformdirs",
    "requests",
    "starlette.applications",
    "starlette.routing",
    "subprocess",
    "trio",
    "urllib3.connection",
    "uvicorn",
    "xdist.dsession",
    "xdist.workermanage",
)
MISSING: dict[Any, tuple[str, ...]] = {
    os: ("O_CLOEXEC", "O_NOFOLLOW", "fork", "getpgid", "killpg", "pidfd_open", "register_at_fork"),
    select: ("epoll", "poll"),
    selectors: ("EpollSelector", "PollSelector"),
    signal: ("SIGALRM", "SIGCHLD", "SIGHUP", "SIGKILL", "SIGQUIT", "SIGUSR1", "SIGUSR2"),
    socket: ("AF_UNIX",),
}


def socketpair(*_: object) -> tuple[socket.socket, socket.socket]:
    """Two ends of a loopback connection, which is what Windows makes."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        one = socket.create_connection(server.getsockname())
        return one, server.accept()[0]


for other in OTHERS:
    with suppress(ImportError):
        import_module(other)
for module, names in MISSING.items():
    for name in names:
        if hasattr(module, name):
            delattr(module, name)
sys.modules["fcntl"] = None  # type: ignore[assignment] # so that its import fails
replaced: Any = selectors
replaced.DefaultSelector = selectors.SelectSelector
replaced = socket
replaced.socketpair = socketpair
