"""Runs in the node: takes commands over a virtio-serial port and answers with how they ended.

A request is one line of JSON and `size` bytes of standard input. A reply is one line of JSON and
`out` + `err` bytes. Requests run side by side; a reply carries the `id` of its request.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time

PORT = os.open(sys.argv[1], os.O_RDWR)
WRITING = threading.Lock()
RUNNING = {}
STARTING = set()


def put(head, *bodies):
    """Write a reply whole: two threads must not mix theirs."""
    data = memoryview(b"".join([json.dumps(head).encode(), b"\n", *bodies]))
    with WRITING:
        while data:
            data = data[os.write(PORT, data) :]


def execute(request, stdin):
    """Run a command until it ends or its time is over."""
    began = time.monotonic()
    try:
        process = subprocess.Popen(
            request["argv"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **(request.get("env") or {})},
            cwd=request.get("cwd"),
            start_new_session=True,
        )
        RUNNING[request["id"]] = process
    except OSError as error:
        return 127, b"", str(error).encode(), 0.0
    finally:
        STARTING.discard(request["id"])
    try:
        out, err = process.communicate(stdin, timeout=request["timeout"])
        status = process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        status = 124
    finally:
        del RUNNING[request["id"]]
    return status, out, err, time.monotonic() - began


def serve(request, stdin):
    """Answer one request."""
    if "clock" in request:
        time.clock_settime(time.CLOCK_REALTIME, request["clock"])
        put({"id": request["id"], "rc": 0, "out": 0, "err": 0, "seconds": 0.0})
    elif "kill" in request:
        while request["kill"] in STARTING:
            time.sleep(0.002)
        process = RUNNING.get(request["kill"])
        if process:
            os.killpg(process.pid, request["signal"])
        put({"id": request["id"], "rc": 0 if process else 1, "out": 0, "err": 0, "seconds": 0.0})
    else:
        status, out, err, took = execute(request, stdin)
        sizes = {"out": len(out), "err": len(err)}
        put({"id": request["id"], "rc": status, "seconds": took, **sizes}, out, err)


def main():
    """Read requests for ever."""
    put({"id": 0, "rc": 0, "out": 0, "err": 0, "seconds": time.clock_gettime(time.CLOCK_BOOTTIME)})
    waiting = bytearray()

    def fill():
        data = os.read(PORT, 1 << 20)
        if not data:
            # The other end is not there: QEMU was restored, and the host has yet to connect.
            time.sleep(0.02)
        waiting.extend(data)

    while True:
        while b"\n" not in waiting:
            fill()
        line, _, rest = waiting.partition(b"\n")
        request = json.loads(line)
        waiting = rest
        while len(waiting) < request["size"]:
            fill()
        stdin = bytes(waiting[: request["size"]])
        del waiting[: request["size"]]
        if "argv" in request:
            STARTING.add(request["id"])
        threading.Thread(target=serve, args=(request, stdin), daemon=True).start()


main()
