"""The retry policy, and the time-outs, delays and periods of endpoints.

Those of the server over which machines share leases are in `shared_leases`.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from pytest_hfbudget.errors import EndpointError
from pytest_hfbudget.locks import Clock


@dataclass(frozen=True)
class RetryPolicy:
    """How often and how long a client of the control plane tries.

    Attributes:
        try_s: seconds to connect, and again for the whole answer, in one try.
        total_s: seconds for one operation with all its tries; 0 means a single try.
        first_wait_s: seconds to wait after the first failure; doubled after each further one.
        most_wait_s: the longest wait. Each wait is shortened at random, so that parallel runs
            don't retry at the same time.
    """

    try_s: float = 10.0
    total_s: float = 60.0
    first_wait_s: float = 0.25
    most_wait_s: float = 8.0

    def wait(self, tries: int, retry_after: float | None = None) -> float:
        """Seconds to wait after ``tries`` failures; at least ``retry_after``."""
        backoff: float = min(self.most_wait_s, self.first_wait_s * 2 ** min(tries - 1, 30))
        jittered = backoff * random.uniform(0.5, 1.0)  # noqa: S311  # spreads load, hides nothing
        return max(jittered, retry_after or 0.0)


@dataclass(frozen=True)
class RunTimings:
    """How long a run waits for endpoints and for its reaper, in seconds.

    Attributes:
        retry_s: one operation of the control plane with all its tries.
        poll_s: the longest time between two looks at an endpoint that comes up.
        wait_timeout_s: how long an endpoint may take from its resume until it serves.
        arm_timeout_s: how long the reaper may take to be ready; nothing is resumed without it.
        verify_deadline_s: how long `Lifecycle.finish` waits for verified pauses. The reaper
            goes on after that.
        max_run_s: how long a run takes at most. After that a sweep from any machine may pause
            what it has tagged; a run that goes on renews its tags in time.
    """

    retry_s: float = 60.0
    poll_s: float = 2.0
    wait_timeout_s: float = 900.0
    arm_timeout_s: float = 15.0
    verify_deadline_s: float = 120.0
    max_run_s: float = 6 * 3600.0

    def pause_after(self, seconds: float) -> float:
        """Seconds until the next look at an endpoint that has been coming up for ``seconds``.

        A late look wastes paid time. So the interval is at most a twentieth of the time so far.
        """
        return min(self.poll_s, max(seconds / 20, FIRST_LOOK_S))


@dataclass(frozen=True)
class Timings:
    """How an endpoint is paused and its pause verified, in seconds.

    Attributes:
        try_s: one try of one request.
        verify_poll_s: between two looks at the state.
        resend_s: after this time an accepted pause that shows no effect is sent again.
        late_resume_s: for how long a resume without an answer may still take effect.
        deadline_s: after this time an endpoint that can't be paused is given up.
        doubt_s: how long a server must answer only 404, or only 401 and 403, before that is
            believed: a gateway in trouble may answer so for an endpoint that runs.
        looks_s: the times after a verified pause at which the endpoint is looked at again, and
            paused again if it runs.
    """

    try_s: float = 10.0
    verify_poll_s: float = 0.5
    resend_s: float = 5.0
    late_resume_s: float = 20.0
    deadline_s: float = 600.0
    doubt_s: float = 15.0
    looks_s: tuple[float, ...] = (30.0, 120.0)

    @property
    def retry(self) -> RetryPolicy:
        """The policy for requests of a pause: single tries, since `Pauser` has its own loop."""
        return RetryPolicy(
            try_s=self.try_s, total_s=0.0, most_wait_s=max(self.resend_s, self.verify_poll_s)
        )


def waiting(
    clock: Clock, most_s: float, check: Callable[[], None], late: str
) -> Callable[[float], None]:
    """Returns a function that sleeps for the seconds it is given, for ``most_s`` in all.

    Args:
        check: called before each sleep; raises to give up.
        late: the message of the `EndpointError` that the function raises after ``most_s``.
    """
    ends, slept = clock.monotonic() + most_s, 0.0

    def wait(seconds: float) -> None:
        nonlocal slept
        slept += seconds  # counted as well, because a suite may freeze the clock
        check()
        if clock.monotonic() >= ends or slept > most_s:
            raise EndpointError(late)
        clock.sleep(seconds)

    return wait


# The rest is the same for every run; all values are seconds.

# The shortest time between two looks at an endpoint that comes up.
FIRST_LOOK_S = 0.1
# Between two tries to lock a file: another run holds the lock while it resumes or pauses.
LOCK_POLL_S = 0.05
# Between two looks at a process where the kernel does not report its death.
DEATH_POLL_S = 0.2
# Between two looks at a process that may be stopped.
STOPPED_POLL_S = 0.2
# A process that was killed closes its sockets a moment before it is gone.
DYING_S = 2.0
DYING_POLL_S = 0.001
# Between two looks at the reaper while a command runs.
TEND_S = 1.0

# The reaper waits this long for its first message: a client that sends none is dead or gave up.
FIRST_MESSAGE_S = 30.0
# The time for the start of a standby; after that the reaper goes on without it.
SPAWN_S = 5.0
# The time to send one message to the reaper; its socket is full only if the reaper is stopped.
SEND_S = 5.0
# For how long one thread may wait for a message of the reaper before another thread may read.
READ_S = 0.05

# The longest sleep of a reaper: its system call can't wait for months.
POLL_S = 3600.0

# The longest Retry-After that a pause respects: meanwhile the endpoint costs money.
MOST_RETRY_AFTER_S = 60.0
# The time to restore the settings of a paused endpoint; else the next run's pause restores them.
RESTORE_S = 5.0
# The last try of a pause comes this long before its deadline, whatever the wait would be.
LAST_TRY_S = 0.2
# Additional time for a pausing thread that is stuck where no time-out applies (DNS).
STUCK_S = 5.0
# One later look, with all its tries.
LOOK_S = 30.0

# The sweep before a run: it must not delay the run for long.
SWEEP_BEFORE_RUN_S = 30.0
# One endpoint in `hfbudget sweep`, for which a person waits.
SWEEP_S = 120.0
# After this time, the lease of a run that can't be looked for is closed if its endpoint is paused.
FORGET_S = 86400.0
# For this long, a run that can't be looked for from here counts as alive.
BELIEVED_S = 86400.0
# How long the journal of a finished run is kept.
KEEP_JOURNALS_S = 30 * 86400.0

# A request for prices or replicas: a report without them is better than a late one.
NICE_TO_KNOW_S = 5.0

# Connections that were idle for longer are closed. A NAT may drop an idle connection silently (in
# hosted CI after some minutes), and a request on such a connection hangs for a whole try.
STALE_CONNECTION_S = 15.0
