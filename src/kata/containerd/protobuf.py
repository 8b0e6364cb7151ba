"""Protocol buffers' wire format, as far as containerd's API needs it.

Messages are built from field numbers, which the .proto files of containerd and of Kubernetes' CRI
fix for good (protobuf.dev, "Encoding").
"""

from collections.abc import Iterator, Mapping

from kata import problems

Value = int | str | bytes | Mapping[str, str] | None

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_SIZES = {_FIXED64: 8, _FIXED32: 4}


class Malformed(problems.Waiting):
    """Bytes that are no message."""

    def __init__(self, why: str) -> None:
        super().__init__(f"containerd's answer cannot be read: {why}")


def message(*fields: tuple[int, Value]) -> bytes:
    """Return a message; give a field several times for a list, and a message's bytes for one.

    Args:
        fields: numbers and values. None, 0 and what is empty are left out, as they mean the same.
    """
    return b"".join(_field(number, value) for number, value in fields)


def read(data: bytes) -> dict[int, list[int | bytes]]:
    """Return a message's fields by number: numbers as int, all else as bytes.

    Raises:
        Malformed: it is none.
    """
    found: dict[int, list[int | bytes]] = {}
    for number, value in _fields(data):
        found.setdefault(number, []).append(value)
    return found


def texts(data: bytes, number: int) -> list[str]:
    """Return a message's strings with that number.

    Raises:
        Malformed: it is no message.
    """
    return [each.decode("utf-8", "replace") for each in messages(data, number)]


def text(data: bytes, number: int) -> str:
    """Return a message's last string with that number; nothing where it has none.

    Raises:
        Malformed: it is no message.
    """
    return (texts(data, number) or [""])[-1]


def messages(data: bytes, number: int) -> list[bytes]:
    """Return a message's parts with that number, undecoded.

    Raises:
        Malformed: it is no message.
    """
    return [each for each in read(data).get(number, ()) if isinstance(each, bytes)]


def mapping(data: bytes, number: int) -> dict[str, str]:
    """Return a message's map of strings.

    Raises:
        Malformed: it is no message.
    """
    return {text(each, 1): text(each, 2) for each in messages(data, number)}


def _field(number: int, value: Value) -> bytes:
    if not value:
        return b""
    if isinstance(value, int):
        return _varint(number << 3 | _VARINT) + _varint(value)
    if isinstance(value, Mapping):
        entries = (message((1, key), (2, each)) for key, each in value.items())
        return b"".join(_field(number, entry) for entry in entries)
    data = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | _BYTES) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    position = 0
    while position < len(data):
        key, position = _read_varint(data, position)
        kind = key & 7
        if kind == _VARINT:
            value, position = _read_varint(data, position)
            yield key >> 3, value
            continue
        if kind == _BYTES:
            size, position = _read_varint(data, position)
        elif kind in _SIZES:
            size = _SIZES[kind]
        else:
            raise Malformed(f"field of kind {kind}")
        if position + size > len(data):
            raise Malformed("it ends too early")
        yield key >> 3, data[position : position + size]
        position += size


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            raise Malformed("it ends too early")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise Malformed("a number is too long")
