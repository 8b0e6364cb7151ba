"""Runs in the node, inside the charm's own Python: counts what it does, and stops it at a point.

A `.pth` file has every Python of the node import this; only a process whose environment names a
point is counted. Python itself reports each change before it happens (PEP 578), so a point lies
between two changes to the machine, and the same hook on the same node has the same points.
"""

import os
import signal
import sys
import time

VARIABLE = (
    "KATA_POINT"  # "record FILE", or "kill|cut FILE NUMBER SECONDS": what is told, and where
)
MARK = "the point: "  # begins the line on the console that says where it is
CHANGES = {
    *("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.symlink", "os.link", "os.chmod"),
    *("os.chown", "os.utime", "os.truncate", "open", "subprocess.Popen"),
}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
# Not the machine's: what Python compiles, what the kernel shows, and Juju's own tools.
PASSED_OVER = ("__pycache__", "/proc/", "/sys/", "/dev/", "/var/lib/juju/")


def watch(how, file, number="0", seconds="0"):
    """Count from here on."""
    count, busy, began = 0, False, time.monotonic()
    tools = os.environ.get("PATH", "").partition(":")[0]
    told = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOCTTY)

    def what(event, arguments):
        """Return what an event changes; nothing if it does not count."""
        if event == "open" and (not isinstance(arguments[2], int) or not arguments[2] & WRITING):
            return ""
        if event == "subprocess.Popen":
            given = arguments[1]
            argv = [given] if isinstance(given, (str, bytes)) else list(given)
            words = [os.fsdecode(each) for each in argv]
            is_of_juju = os.path.exists(os.path.join(tools, os.path.basename(words[0])))
            return "" if is_of_juju else " ".join(words)
        path = arguments[1 if event == "os.symlink" else 0]
        folder = arguments[2 if event == "os.rename" else -1]
        if isinstance(path, int):
            # Opening what is open changes nothing.
            return "" if event == "open" else os.readlink(f"/proc/self/fd/{path}")
        path = os.fsdecode(path)
        if (
            not path.startswith("/")
            and event != "open"
            and isinstance(folder, int)
            and folder >= 0
        ):
            path = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path)
        return "" if any(each in path for each in PASSED_OVER) else path

    def see(event, arguments):
        nonlocal count, busy
        if busy or event not in CHANGES:
            return
        busy = True
        try:
            subject = what(event, arguments)
            if subject:
                count += 1
                at_point(event, subject)
        finally:
            busy = False

    def at_point(event, subject):
        if how == "record" or count == int(number):
            head = "" if how == "record" else f"\n{MARK}"
            said = f"{head}{time.monotonic() - began:.3f}\t{event}\t"
            os.write(
                told, said.encode() + subject.replace("\n", " ").encode("utf-8", "replace") + b"\n"
            )
        if how == "record" or count != int(number):
            return
        while how == "cut" and not float(seconds):
            signal.pause()
        if how == "kill" and float(seconds):
            # Its default action ends a process as SIGKILL does: nothing more of it runs.
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, float(seconds))
        elif how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(see)


if VARIABLE in os.environ:
    # Its children are programs of the machine, or Juju's tools.
    watch(*os.environ.pop(VARIABLE).split())
