"""Protocol buffers' wire format."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata import problems
from kata.containerd import protobuf


def test_the_examples_of_the_format_itself():
    # protobuf.dev, "Encoding": a message with a = 150, and one with b = "testing".
    assert protobuf.message((1, 150)) == bytes.fromhex("089601")
    assert protobuf.message((2, "testing")) == bytes.fromhex("120774657374696e67")


def test_what_means_nothing_is_left_out():
    assert protobuf.message((1, None), (2, 0), (3, ""), (4, b""), (5, {})) == b""


def test_fields_come_back_in_order_and_all_of_them():
    data = protobuf.message((1, "a"), (3, "b"), (1, "c"), (2, 7))
    assert protobuf.read(data) == {1: [b"a", b"c"], 3: [b"b"], 2: [7]}
    assert protobuf.texts(data, 1) == ["a", "c"]
    assert protobuf.text(data, 1) == "c", "the last one counts"
    assert protobuf.text(data, 9) == ""


@given(st.dictionaries(st.text(min_size=1), st.text(min_size=1)))
def test_maps_survive(entries):
    assert protobuf.mapping(protobuf.message((4, entries)), 4) == entries


@given(st.integers(0, 1 << 64), st.integers(1, 1 << 28))
def test_numbers_survive(value, number):
    value %= 1 << 64
    assert protobuf.read(protobuf.message((number, value))) == ({number: [value]} if value else {})


def test_fixed_numbers_are_passed_over_whole():
    data = bytes.fromhex("09 0102030405060708 15 01020304") + protobuf.message((4, 1))
    assert protobuf.read(data) == {1: [bytes(range(1, 9))], 2: [bytes(range(1, 5))], 4: [1]}


@pytest.mark.parametrize("data", ["0a", "0a05ff", "08", "0b", "08" + "ff" * 11, "0d00"])
def test_what_is_no_message_is_said(data):
    with pytest.raises(problems.Waiting, match="containerd's answer cannot be read"):
        protobuf.read(bytes.fromhex(data))


@given(st.binary())
def test_any_bytes_are_read_or_refused(data):
    try:
        protobuf.read(data)
    except protobuf.Malformed:
        pass
