"""Time limits for what asks others: files, sockets and programs that may never answer."""

import contextlib
import signal
from collections.abc import Generator

from kata import problems


class _TooLate(BaseException):
    """Passes by all that would go on after a failure of a part."""


@contextlib.contextmanager
def within(seconds: int) -> Generator[None]:
    """Give up on what takes longer than that many seconds; for the main thread only.

    Raises:
        Waiting: the time is up.
    """

    def stop(*_: object) -> None:
        raise _TooLate

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except _TooLate:
        raise problems.Waiting(
            f"no answer within {seconds} s: see with top and iostat what keeps the machine busy, "
            "then run it again"
        ) from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
