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

# Seconds for one script. A server that takes longer counts as gone until it answers again.
TIMEOUT_S = 2.0

# Variables of CI services that together are the same in all jobs of a run, and only there.
CI_RUNS = (
    ("GITHUB_REPOSITORY", "GITHUB_RUN_ID", "GITHUB_RUN_ATTEMPT"),
    ("CI_PROJECT_PATH", "CI_PIPELINE_ID"),  # GitLab
    ("BUILDKITE_BUILD_ID",),
    ("CIRCLE_WORKFLOW_ID",),
    ("JENKINS_URL", "BUILD_TAG"),
)
# Variables of CI services that name the repository: the same on each of its machines.
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
    """The URL of the server, and its password."""

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
class SharedConnection:
    """How a reaper reaches the server. It gets this over its socket, as it gets the token.

    Attributes:
        run: the name of the run that the job belongs to.
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
        trips: how many scripts this process has sent, waiting for the answer of each.
    """

    def __init__(self, address: SharedAddress, *, timeout_s: float = TIMEOUT_S) -> None:
        self.address, self._timeout_s = address, timeout_s
        self._client: Redis | None = None
        self._scripts: dict[str, Any] = {}
        self.trips = 0

    def run(self, script: str, keys: Sequence[str], arguments: Sequence[object]) -> Any:
        """The result of a script. A server that no longer has the script gets it once more.

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
        """Whether the server accepts writes. A full server, or a replica, can only be read."""
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

            # The server may have closed a connection since its last use, so that is tried again.
            # A time-out is not: the caller would wait too long.
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
        """Close the connection."""
        if self._client is not None:
            self._client.close()

    def _explained(self, error: Exception) -> SharedServerError:
        # After this, redis-py says where in the script the error was, which helps no user.
        said = printable(" ".join(str(error).split())).partition(" script: ")[0]
        if "HFBUDGET version" in said:
            _, _, found = said.partition("HFBUDGET version ")
            return SharedServerError(
                f"{self.address} has data of another release of pytest-hfbudget (version {found}; "
                f"this release needs version {VERSION}). Use the same release in all jobs, or "
                "another database."
            )
        secrets = filter(None, (self.address.password, _password(self.address.url)))
        for secret in secrets:
            said = said.replace(secret, "***")
        return SharedServerError(f"the shared server {self.address} can't be used: {said}")


# Bytes of JSON. A larger report is shared without its list of calls.
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
    """Store the report of a job on the server for a week, for `reports_of`.

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


def place(settings: Settings, environ: Mapping[str, str] = os.environ) -> SharedConnection | None:
    """How the reaper of a run reaches the server; None for a run that shares nothing.

    Raises:
        ConfigError: as `run_name`; or the password is empty.
    """
    if settings.shared is None or settings.emulator:
        return None
    address = SharedAddress.of(settings.shared, environ)
    name = run_name(settings, environ)
    return SharedConnection(address.url, address.password, name, settings.shared_expiry)


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
    """The name of the run that this job belongs to.

    Raises:
        ConfigError: no setting gives it, and neither do the variables of a known CI service.
    """
    found = settings.shared_run or _from_ci(CI_RUNS, environ)
    if not found:
        raise ConfigError(
            "--hf-shared: which run does this job belong to? Set HFBUDGET_SHARED_RUN to one name "
            "in all jobs of a run, and to another one in the next run."
        )
    return found


def project_name(settings: Settings, environ: Mapping[str, str] = os.environ) -> str:
    """The name of the project whose daily, weekly and monthly budgets the machines share.

    Raises:
        ConfigError: as `run_name`.
    """
    found = settings.project or _from_ci(CI_PROJECTS, environ)
    if not found:
        raise ConfigError(
            "--hf-shared: which project's daily, weekly or monthly budget is shared? Set "
            "HFBUDGET_PROJECT (or hf_project) to one name on all machines."
        )
    return found


def _from_ci(services: Sequence[Sequence[str]], environ: Mapping[str, str]) -> str:
    for variables in services:
        if all(environ.get(name) for name in variables):
            return "/".join(environ[name].strip() for name in variables)
    return ""


def _password(url: str) -> str:
    from urllib.parse import unquote, urlsplit

    try:
        return unquote(urlsplit(url).password or "")
    except ValueError:
        return ""
