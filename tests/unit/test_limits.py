"""What takes too long is given up."""

import contextlib
import signal
import time

import pytest

from kata import limits, problems


def test_what_is_quick_is_left_alone():
    before = signal.getsignal(signal.SIGALRM)
    with limits.within(1):
        pass
    assert signal.getsignal(signal.SIGALRM) == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_what_goes_on_after_failures_is_stopped_all_the_same():
    began = time.monotonic()
    with pytest.raises(problems.Waiting, match="no answer within 1 s"), limits.within(1):
        while True:
            with contextlib.suppress(Exception):
                time.sleep(5)
    assert time.monotonic() - began < 3
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
