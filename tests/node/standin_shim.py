#!/usr/bin/python3 -IS
"""Stands in for Kata's shim: containerd starts it, and pods run, but in no virtual machine.

The work is done by runc's shim, which this program starts and stands before. It answers to the
one question that tells Kata's generations apart for containerd: which message types it takes for
a handler's options. What runc's shim would not know is taken off before it sees it. For each
sandbox one process runs from the release's own `bin` folder, as a hypervisor would.

`standin.py` writes RELEASE and TYPES into it.
"""

import os
import socket
import struct
import subprocess
import sys
import threading

RELEASE = "0.0.0"
LANGUAGE = "Golang"
# Types of options that this generation knows.
TYPES = ("runtimeoptions.v1.Options", "cri.runtimeoptions.v1.Options")
RUNC = "/usr/bin/containerd-shim-runc-v2"
# ttrpc: length of the message, its stream, its type (1 request, 2 response), flags.
HEADER = struct.Struct(">IIBB")
OPTIONS = 10  # field of containerd.task.v2.CreateTaskRequest
NOT_FOUND = 5  # gRPC status


def fields(data):
    """Split a protobuf message into (number, wire type, whole field, content)."""
    at = 0

    def number():
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        begin = at
        tag = number()
        if tag & 7 == 0:
            content = number()
        else:
            size = {1: 8, 5: 4}.get(tag & 7) or number()
            content = data[at : at + size]
            at += size
        yield tag >> 3, tag & 7, data[begin:at], content


def field(number, content):
    """Return a protobuf field that holds bytes."""
    size, head = len(content), bytes([number << 3 | 2])
    while size >= 0x80:
        head += bytes([size & 0x7F | 0x80])
        size >>= 7
    return head + bytes([size]) + content


def without_options(request):
    """Return a Create request as runc's shim takes it, or None if its options are unknown."""
    method, kept = b"", b""
    for number, _, field_as_sent, content in fields(request):
        whole = field_as_sent
        method = content if number == 2 else method
        if number == 3 and method == b"Create":
            payload = b""
            for inner, _, part, value in fields(content):
                if inner != OPTIONS:
                    payload += part
                elif type_of(value) not in TYPES:
                    return None
            whole = field(3, payload)
        kept += whole
    return kept


def type_of(message):
    """Return the name of the type in a google.protobuf.Any."""
    for number, _, _, content in fields(message):
        if number == 1:
            return content.decode().rpartition("/")[2]
    return ""


def take(connection, size):
    """Read exactly so many bytes."""
    data = b""
    while len(data) < size:
        piece = connection.recv(size - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data


def requests(client, server, lock):
    """Hand on what containerd asks."""
    while True:
        head = take(client, HEADER.size)
        size, stream, kind, flags = HEADER.unpack(head)
        message = take(client, size)
        changed = without_options(message) if kind == 1 else message
        if changed is None:
            status = b"\x08" + bytes([NOT_FOUND]) + field(2, b"not found")
            answer = field(1, status)
            with lock:
                client.sendall(HEADER.pack(len(answer), stream, 2, 0) + answer)
        else:
            server.sendall(HEADER.pack(len(changed), stream, kind, flags) + changed)


def serve(client, address):
    """Stand between one connection of containerd's and runc's shim."""
    server, lock = socket.socket(socket.AF_UNIX), threading.Lock()

    def answers():
        while piece := server.recv(1 << 16):
            with lock:
                client.sendall(piece)

    def until_over(work):
        try:
            work()
        except (OSError, EOFError):
            pass
        for each in (client, server):
            try:
                each.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    try:
        server.connect(address)
    except OSError:
        # runc's shim is gone, and so is what this one was for.
        return False
    threading.Thread(target=until_over, args=[answers], daemon=True).start()
    until_over(lambda: requests(client, server, lock))
    return True


def watch(address, stop):
    """Call `stop` when runc's shim has ended: it serves until its last container is gone."""
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(address)
        while line.recv(1):
            pass
    stop()


def daemon(listener, place, address):
    """Serve until runc's shim ends."""
    bin_folder = os.path.dirname(os.path.realpath(__file__)).replace("/runtime-rs/", "/")
    hypervisor = subprocess.Popen([f"{bin_folder}/qemu-system-x86_64", "infinity"])

    def stop():
        hypervisor.kill()
        os.unlink(place)
        os._exit(0)

    threading.Thread(target=watch, args=[address, stop], daemon=True).start()
    while True:
        client, _ = listener.accept()
        threading.Thread(target=serve, args=[client, address], daemon=True).start()


def start(arguments):
    """Start runc's shim, and stand before it; print where."""
    done = subprocess.run(
        [RUNC, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=False
    )
    if done.returncode:
        return done.returncode
    address = done.stdout.decode().strip().removeprefix("unix://")
    place = address + ".kata"
    listener = socket.socket(socket.AF_UNIX)
    try:
        # A pod's further containers share the shim of the first.
        listener.connect(place)
    except OSError:
        listener = socket.socket(socket.AF_UNIX)
        if os.path.exists(place):
            os.unlink(place)
        listener.bind(place)
        listener.listen()
        if os.fork() == 0:
            os.setsid()
            null = os.open("/dev/null", os.O_RDWR)
            for descriptor in (0, 1, 2):
                os.dup2(null, descriptor)
            if os.fork() == 0:
                daemon(listener, place, address)
            os._exit(0)
        os.wait()
    print(f"unix://{place}", end="", flush=True)
    return 0


def main():
    """Do what containerd asks for with the last argument."""
    arguments = sys.argv[1:]
    if arguments and arguments[0] in ("--version", "-v"):
        name = f"Kata Containers containerd shim ({LANGUAGE}): id: io.containerd.kata.v2"
        print(f"{name}, version: {RELEASE}, commit: stand-in")
        return 0
    if arguments and arguments[-1] == "start":
        return start(arguments)
    os.execv(RUNC, [RUNC, *arguments])


if __name__ == "__main__":
    sys.exit(main())
