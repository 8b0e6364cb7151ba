"""Words and figures made fit for a terminal of 80 columns.

Names of pods, images and files come from others: shown as they are, they could move the cursor,
break lines or pose as our own words.
"""

import re
import textwrap

WIDTH = 80
_DOUBTFUL = re.compile(r"[^\n\t\x20-\x7e]")
_SAFE = frozenset([*map(chr, range(0x20, 0x7F)), "…"])


def plain(text: object) -> str:
    r"""Return text in printable ASCII, … aside; anything else is written as `\x1b` and the like."""
    return "".join(each if each in _SAFE else _escaped(each) for each in str(text))


def shown(text: str) -> str:
    r"""Return text in lines that a terminal only shows: control characters are written out.

    That keeps letters of all languages, tabs and lines; `\x1b`, a half character of a file that is
    no UTF-8, and marks that turn the direction of reading come as `plain` writes them.
    """
    return _DOUBTFUL.sub(
        lambda found: each if (each := found[0]).isprintable() else _escaped(each), text
    )


def _escaped(character: str) -> str:
    if character.isascii():
        return f"\\x{ord(character):02x}"
    return character.encode("ascii", "backslashreplace").decode("ascii")


def cut(text: object, width: int) -> str:
    """Return plain text of at most that many columns, with … for what was cut off."""
    shown = plain(text)
    return shown if len(shown) <= width else f"{shown[: width - 1]}…"


def tail(path: object, width: int) -> str:
    """Return a plain path of at most that many columns: its end tells most."""
    shown = plain(path)
    return shown if len(shown) <= width else f"…{shown[len(shown) - width + 1 :]}"


def wrapped(text: str, indent: int = 0, hanging: int = 0) -> list[str]:
    """Return text in lines of at most 80 columns, each indented; those after the first by more."""
    return textwrap.wrap(
        plain(text),
        WIDTH,
        initial_indent=" " * indent,
        subsequent_indent=" " * (indent + hanging),
        break_on_hyphens=False,
    )


def age(seconds: int) -> str:
    """Return a time in at most six columns: `59s`, `12m30s`, `23h59m`, `12d3h`, `400d`."""
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if days > 99:
        return f"{days}d"
    if days:
        return f"{days}d{hours % 24}h"
    if hours:
        return f"{hours}h{minutes % 60:02}m"
    return f"{minutes}m{seconds % 60:02}s" if minutes else f"{seconds}s"


def mebibytes(size: int) -> int:
    """Return a number of bytes in MiB, rounded."""
    return round(size / (1 << 20))
