"""The Redis or Valkey server over which machines share budgets and endpoints.

redis-py is imported when the first connection is needed: without ``--hf-shared`` it never is.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pytest_hfbudget.errors import ConfigError, HistoryError
from pytest_hfbudget.settings import SHARED_PASSWORD, Settings
from pytest_hfbudget.text import printable, public_url

if TYPE_CHECKING:
    from redis import Redis

# Every key begins with it, expires, and carries the version of its format in the field `v`.
PREFIX = "hfbudget:"
VERSION = "1"

# One step of a run; a server that takes longer counts as gone until it answers again.
TIMEOUT_S = 2.0

# What a CI gives to all jobs of one run, and to no job of another.
CI_RUNS = (
    ("GITHUB_REPOSITORY", "GITHUB_RUN_ID", "GITHUB_RUN_ATTEMPT"),
    ("CI_PROJECT_PATH", "CI_PIPELINE_ID"),  # GitLab
    ("BUILDKITE_BUILD_ID",),
    ("CIRCLE_WORKFLOW_ID",),
    ("JENKINS_URL", "BUILD_TAG"),
)
# What a CI calls the repository: the same on each of its machines.
CI_PROJECTS = (
    ("GITHUB_REPOSITORY",),
    ("CI_PROJECT_PATH",),
    ("BUILDKITE_ORGANIZATION_SLUG", "BUILDKITE_PIPELINE_SLUG"),
    ("CIRCLE_PROJECT_USERNAME", "CIRCLE_PROJECT_REPONAME"),
    ("JENKINS_URL", "JOB_NAME"),
)


class SharedServerError(HistoryError):
    """The server that machines share can't be used; the message never has its password."""


@dataclass(frozen=True)
class SharedAddress:
    """Where the server is, and what opens it."""

    url: str = field(repr=False)
    password: str | None = field(default=None, repr=False)

    @classmethod
    def of(cls, url: str, environ: Mapping[str, str] = os.environ) -> SharedAddress:
        """The address with the password of the environment.

        Raises:
            ConfigError: the password is given, and empty.
        """
        password = environ.get(SHARED_PASSWORD)
        if password is not None and not password:
            raise ConfigError(f"{SHARED_PASSWORD} is empty: write the password, or remove it.")
        return cls(url, password)

    def __str__(self) -> str:
        return public_url(self.url)


@dataclass(frozen=True)
class SharedPlace:
    """What a reaper has to know of the server; it goes through its socket, as the token does.

    Attributes:
        run: the run that the job belongs to.
        expiry_s: seconds without a sign of life after which a job counts as lost.
    """

    url: str = field(repr=False)
    password: str | None = field(default=None, repr=False)
    run: str = ""
    expiry_s: float = 30.0

    @property
    def address(self) -> SharedAddress:
        """Where the server is."""
        return SharedAddress(self.url, self.password)


class SharedServer:
    """One server. Every step is one script, so that nothing happens between its parts.

    Attributes:
        trips: how many times this process has asked the server and waited for its answer.
    """

    def __init__(self, address: SharedAddress, *, timeout_s: float = TIMEOUT_S) -> None:
        self.address, self._timeout_s = address, timeout_s
        self._client: Redis | None = None
        self._scripts: dict[str, Any] = {}
        self.trips = 0

    def run(self, script: str, keys: Sequence[str], arguments: Sequence[object]) -> Any:
        """What a script returns; a server that has forgotten it gets it once more.

        Raises:
            SharedServerError: the server can't be reached, or refuses.
        """
        from redis.exceptions import RedisError

        self.trips += 1
        try:
            known = self._scripts.get(script)
            if known is None:
                known = self._scripts[script] = self._connected().register_script(script)
            return known(keys=list(keys), args=[str(each) for each in arguments])
        except (RedisError, OSError, ValueError) as error:
            raise self._explained(error) from None

    def keys(self, pattern: str) -> tuple[str, ...]:
        """The keys that match a pattern, sorted.

        Raises:
            SharedServerError: the server can't be reached, or refuses.
        """
        from redis.exceptions import RedisError

        try:
            return tuple(sorted(self._connected().scan_iter(pattern, count=1000)))
        except (RedisError, OSError, ValueError) as error:
            raise self._explained(error) from None

    def takes_writes(self) -> bool:
        """Whether the server can be written: one that is full, or a replica, can only be read."""
        from redis.exceptions import RedisError

        try:
            return bool(self._connected().set(f"{PREFIX}probe", VERSION, ex=1))
        except (RedisError, OSError, ValueError):
            return False

    def _connected(self) -> Redis:
        if self._client is None:
            from redis import Redis
            from redis.backoff import NoBackoff
            from redis.exceptions import ConnectionError as Lost
            from redis.retry import Retry

            # A connection may have been closed since its last use; what takes too long is not
            # tried again here: the caller has other calls to look after.
            self._client = Redis.from_url(
                self.address.url,
                password=self.address.password,
                decode_responses=True,
                socket_timeout=self._timeout_s,
                socket_connect_timeout=self._timeout_s,
                retry=Retry(NoBackoff(), 1, supported_errors=(Lost,)),
            )
        return self._client

    def close(self) -> None:
        """Hang up."""
        if self._client is not None:
            self._client.close()

    def _explained(self, error: Exception) -> SharedServerError:
        # What follows says where in the script it was, which helps no user.
        said = printable(" ".join(str(error).split())).partition(" script: ")[0]
        if "HFBUDGET version" in said:
            _, _, found = said.partition("HFBUDGET version ")
            return SharedServerError(
                f"{self.address} has version {found} of another release of pytest-hfbudget; "
                f"this one needs {VERSION}. Use the same release in all jobs, or another database."
            )
        secrets = filter(None, (self.address.password, _password(self.address.url)))
        for secret in secrets:
            said = said.replace(secret, "***")
        return SharedServerError(f"the shared server {self.address} can't be used: {said}")


# A report that is larger is shared without its single calls.
LARGEST_REPORT = 4_000_000
_KEEP_REPORT = """
local found = redis.call('HGET', KEYS[1], 'v')
if found and found ~= ARGV[1] then
  return redis.error_reply('HFBUDGET version ' .. found .. ' of ' .. KEYS[1])
end
redis.call('HSET', KEYS[1], 'v', ARGV[1], 'j:' .. ARGV[2], ARGV[3])
return redis.call('EXPIRE', KEYS[1], 604800)
"""


def keep_report(server: SharedServer, run: str, job: str, content: dict[str, Any]) -> None:
    """Have the report of a job at hand for `reports_of`, for a week.

    Raises:
        SharedServerError: the server can't be used.
    """
    text = json.dumps(content)
    if len(text) > LARGEST_REPORT:
        text = json.dumps({**content, "calls": []})
    server.run(_KEEP_REPORT, [f"{PREFIX}run:{run}:reports"], [VERSION, job, text])


def reports_of(server: SharedServer, run: str) -> tuple[str, ...]:
    """The reports of the jobs of a run, as JSON.

    Raises:
        SharedServerError: the server can't be used.
    """
    key = f"{PREFIX}run:{run}:reports"
    told = server.run("return redis.call('HGETALL', KEYS[1])", [key], [])
    pairs = zip(told[::2], told[1::2], strict=True)
    return tuple(text for name, text in sorted(pairs) if name.startswith("j:"))


def place(settings: Settings, environ: Mapping[str, str] = os.environ) -> SharedPlace | None:
    """What the reaper of a run has to know; None for a run that shares nothing.

    Raises:
        ConfigError: it is not known which run this job belongs to.
    """
    if settings.shared is None or settings.emulator:
        return None
    address = SharedAddress.of(settings.shared, environ)
    name = run_name(settings, environ)
    return SharedPlace(address.url, address.password, name, settings.shared_expiry)


def connect(settings: Settings, environ: Mapping[str, str] = os.environ) -> SharedServer:
    """The server of ``--hf-shared``; nothing is sent yet.

    Raises:
        ConfigError: redis-py is not installed, or the password is empty.
    """
    try:
        import redis  # noqa: F401
    except ImportError:
        raise ConfigError(
            '--hf-shared needs redis-py: pip install "pytest-hfbudget[redis]"'
        ) from None
    return SharedServer(SharedAddress.of(settings.shared or "", environ))


def run_name(settings: Settings, environ: Mapping[str, str] = os.environ) -> str:
    """The run that several jobs belong to.

    Raises:
        ConfigError: it is not given, and no CI that is known tells it.
    """
    found = settings.shared_run or _told(CI_RUNS, environ)
    if not found:
        raise ConfigError(
            "--hf-shared: which run does this job belong to? Set HFBUDGET_SHARED_RUN to one name "
            "in all jobs of a run, and to another one in the next run."
        )
    return found


def project_name(settings: Settings, environ: Mapping[str, str] = os.environ) -> str:
    """What shares a daily, weekly or monthly budget, by the same name on each machine.

    Raises:
        ConfigError: it is not given, and no CI that is known tells it.
    """
    found = settings.project or _told(CI_PROJECTS, environ)
    if not found:
        raise ConfigError(
            "--hf-shared: which project's daily, weekly or monthly budget is shared? Set "
            "HFBUDGET_PROJECT (or hf_project) to one name on all machines."
        )
    return found


def _told(names: Sequence[Sequence[str]], environ: Mapping[str, str]) -> str:
    for each in names:
        if all(environ.get(name) for name in each):
            return "/".join(environ[name].strip() for name in each)
    return ""


def _password(url: str) -> str:
    from urllib.parse import unquote, urlsplit

    try:
        return unquote(urlsplit(url).password or "")
    except ValueError:
        return ""
