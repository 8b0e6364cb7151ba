"""How far long work has come, told at a pace that a status line and its readers can follow."""

import time
from collections.abc import Callable

_SECONDS_BETWEEN = 2


class Pace:
    """Says how far something is: nothing twice, and not too often."""

    def __init__(self, progress: Callable[[str], object]) -> None:
        self._progress = progress
        self._said = ""
        self._at = 0.0

    def percent(self, what: str, whole: int = 0) -> Callable[..., None]:
        """Return what to tell the bytes that are done, and how many there are if that changes."""

        def tell(done: int, total: int | None = None) -> None:
            of = total or whole
            self.say(f"{what}: {f'{100 * done // of} %' if of else f'{done >> 20} MiB'}")

        return tell

    def say(self, words: str) -> None:
        """Say something, unless something was said just now."""
        now = time.monotonic()
        if words != self._said and now - self._at >= _SECONDS_BETWEEN:
            self._said, self._at = words, now
            self._progress(words)
