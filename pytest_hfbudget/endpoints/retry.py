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
    """How patient a client of the control plane is.

    Attributes:
        try_s: seconds for one try to connect, and again for its whole answer.
        total_s: seconds for one operation with all its tries; 0 means a single try.
        first_wait_s, most_wait_s: the wait before a second try doubles from the first to the
            most; each is shortened at random, so that parallel runs don't come back in step.
    """

    try_s: float = 10.0
    total_s: float = 60.0
    first_wait_s: float = 0.25
    most_wait_s: float = 8.0

    def wait(self, tries: int, retry_after: float | None = None) -> float:
        """Seconds to wait after ``tries`` failures; what the server asked for is the least."""
        backoff: float = min(self.most_wait_s, self.first_wait_s * 2 ** min(tries - 1, 30))
        jittered = backoff * random.uniform(0.5, 1.0)  # noqa: S311  # spreads load, hides nothing
        return max(jittered, retry_after or 0.0)


@dataclass(frozen=True)
class RunTimings:
    """How long a run waits for endpoints and for its reaper, in seconds.

    Attributes:
        retry_s: one operation of the control plane with all its tries.
        poll_s: between two looks while an endpoint comes up, at most: the first come sooner.
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
        """Seconds until the next look, when an endpoint has been coming up for so long.

        It is paid for from when it serves, not from when that is seen: a twentieth more at most.
        """
        return min(self.poll_s, max(seconds / 20, FIRST_LOOK_S))


@dataclass(frozen=True)
class Timings:
    """How an endpoint is paused and its pause verified, in seconds.

    Attributes:
        try_s: one try of one request.
        verify_poll_s: between two looks at the state.
        resend_s: an accepted pause that has not happened by then is sent again.
        settle_s: for how long a resume whose answer was lost may still take effect.
        deadline_s: after that an endpoint that can't be paused is given up.
        doubt_s: how long a server must answer 404, or 401 and 403, and nothing else, before
            that is believed: a gateway in trouble may answer so for an endpoint that runs.
        looks_s: how long after a verified pause the endpoint is looked at again, and paused
            again if it runs.
    """

    try_s: float = 10.0
    verify_poll_s: float = 0.5
    resend_s: float = 5.0
    settle_s: float = 20.0
    deadline_s: float = 600.0
    doubt_s: float = 15.0
    looks_s: tuple[float, ...] = (30.0, 120.0)

    @property
    def retry(self) -> RetryPolicy:
        """Waits between tries; tries are single, since pausing has a loop of its own."""
        return RetryPolicy(
            try_s=self.try_s, total_s=0.0, most_wait_s=max(self.resend_s, self.verify_poll_s)
        )


def waiting(
    clock: Clock, most_s: float, check: Callable[[], None], late: str
) -> Callable[[float], None]:
    """What waits for some seconds each time that it is called, and for ``most_s`` in all.

    Args:
        check: called before each wait; raises to give up.
        late: the message of the `EndpointError` that ends it.
    """
    ends, slept = clock.monotonic() + most_s, 0.0

    def wait(seconds: float) -> None:
        nonlocal slept
        slept += seconds  # counted too, should a suite freeze its clock
        check()
        if clock.monotonic() >= ends or slept > most_s:
            raise EndpointError(late)
        clock.sleep(seconds)

    return wait


# The rest is the same for every run; all values are seconds.

# The first pause between two looks at an endpoint that comes up.
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
# The start of a standby; after that the reaper goes on without it.
SPAWN_S = 5.0
# One message to the reaper, whose socket is full only when it is stopped.
SEND_S = 5.0
# One thread reads what the reaper sends; after this time without a message another one may.
READ_S = 0.05

# How long a reaper sleeps at the most; its system call knows no waits of months.
POLL_S = 3600.0

# A server may ask for an hour; a bill that runs can't wait for it.
MOST_RETRY_AFTER_S = 60.0
# To put the settings of a paused endpoint back; what fails is left to the next run's pause.
RESTORE_S = 5.0
# The last try of a pause comes this long before its deadline, whatever the wait would be.
LAST_TRY_S = 0.2
# The last request of a thread that is stuck where no time-out reaches (DNS).
STUCK_S = 5.0
# One later look, with all its tries; there is another look, and it was seen paused before.
LOOK_S = 30.0

# Leftovers of other runs must not keep a run from beginning.
SWEEP_BEFORE_RUN_S = 30.0
# One endpoint of a sweep that a person waits for.
SWEEP_S = 120.0
# The lease of a run that can't be judged is closed after that time, if its endpoint is paused.
FORGET_S = 86400.0
# A lease of a process that can't be looked for from here counts for that long.
BELIEVED_S = 86400.0
# Long enough to look up what a run did; then a finished run's journal is only clutter.
KEEP_JOURNALS_S = 30 * 86400.0

# Prices and replicas: a report without them is better than a run that does not end.
NICE_TO_KNOW_S = 5.0

# A NAT may forget an idle connection without telling either side (hosted CI does after a few
# minutes), and a request on such a connection hangs for a whole try. Younger ones are safe.
STALE_CONNECTION_S = 15.0
