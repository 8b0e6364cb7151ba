"""Time limits for what asks others: files, sockets and programs that may never answer."""

import contextlib
import signal
from collections.abc import Generator

from kata import problems


class _TooLate(BaseException):
    """Passes by all that would go on after a failure of a part."""


_BUSY = "see with top and iostat what keeps the machine busy, then run it again"


@contextlib.contextmanager
def within(seconds: float, remedy: str = _BUSY) -> Generator[None]:
    """Give up on what takes longer than that many seconds; for the main thread only.

    Args:
        seconds: how long it may take.
        remedy: what to say of it when the time is up.

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
        raise problems.Waiting(f"no answer within {seconds:g} s: {remedy}") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
