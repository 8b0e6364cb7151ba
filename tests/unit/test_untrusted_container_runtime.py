"""The interface library against the wire format of the reactive one."""

import json

import ops
import ops.testing
import pytest
from charms.kata.v0 import untrusted_container_runtime as untrusted
from hypothesis import given
from hypothesis import strategies as st

PLAIN = untrusted.Runtime("kata", "/usr/bin/kata-runtime")
FULL = untrusted.Runtime(
    "kata",
    "/usr/bin/kata-runtime",
    untrusted.Handler(
        "io.containerd.kata.v2",
        "/usr/local/bin/containerd-shim-kata-v2",
        "/etc/kata-containers/configuration.toml",
        ("io.katacontainers.*",),
    ),
)


class Kata(ops.CharmBase):
    def __init__(self, framework):
        super().__init__(framework)
        self.untrusted = untrusted.RuntimeRequirer(self)
        framework.observe(self.on.untrusted_relation_joined, self._publish)

    def _publish(self, _):
        self.untrusted.publish(PLAIN)


class Containerd(ops.CharmBase):
    def __init__(self, framework):
        super().__init__(framework)
        self.untrusted = untrusted.RuntimeProvider(self)
        framework.observe(self.untrusted.on.changed, self._note)

    def _note(self, _):
        self.unit.status = ops.ActiveStatus(str(self.untrusted.runtime))


def _old_reader(data, key):
    """Read a key as the reactive endpoint does: JSON, or else the raw text."""
    try:
        return json.loads(data[key])
    except ValueError:
        return data[key]


@pytest.fixture
def kata():
    meta = {
        "name": "kata",
        "requires": {
            "untrusted": {"interface": "untrusted-container-runtime", "scope": "container"}
        },
    }
    return ops.testing.Context(Kata, meta={**meta, "subordinate": True})


@pytest.fixture
def containerd():
    endpoint = {"interface": "untrusted-container-runtime", "scope": "container"}
    meta = {"name": "containerd", "provides": {"untrusted": endpoint}}
    return ops.testing.Context(Containerd, meta=meta)


def test_the_quotes_are_on_the_wire(kata):
    relation = ops.testing.SubordinateRelation("untrusted", remote_app_name="containerd")
    after = kata.run(kata.on.relation_joined(relation), ops.testing.State(relations=[relation]))
    data = after.get_relation(relation.id).local_unit_data
    assert data["name"] == '"kata"'
    assert data["binary_path"] == '"/usr/bin/kata-runtime"'


def test_an_old_reader_understands_the_new_writer():
    data = untrusted.encode(FULL)
    assert _old_reader(data, "name") == "kata"
    assert _old_reader(data, "binary_path") == "/usr/bin/kata-runtime"


def test_the_extension_is_one_more_key_and_changes_neither_of_the_old():
    plain, full = untrusted.encode(PLAIN), untrusted.encode(FULL)
    assert {key: full[key] for key in plain} == plain
    assert set(full) - set(plain) == {"handler"}
    # The containerd charm keeps all that it has received in a store of JSON.
    received = {key: _old_reader(full, key) for key in full}
    assert json.loads(json.dumps(received)) == received


def test_a_change_is_published_once(kata):
    relation = ops.testing.SubordinateRelation("untrusted", remote_app_name="containerd")
    with kata(
        kata.on.relation_joined(relation), ops.testing.State(relations=[relation])
    ) as manager:
        manager.run()
        assert not manager.charm.untrusted.publish(PLAIN)
        assert manager.charm.untrusted.publish(FULL)


@pytest.mark.parametrize("runtime", [PLAIN, FULL])
def test_what_is_written_is_read(runtime):
    assert untrusted.decode(untrusted.encode(runtime)) == runtime


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({}, None),
        ({"name": '"kata"'}, None),
        ({"name": '""', "binary_path": '"/x"'}, None),
        ({"name": "kata", "binary_path": "/x"}, untrusted.Runtime("kata", "/x")),
        ({"name": "3", "binary_path": "/x"}, None),
        (
            {"name": '"kata"', "binary_path": '"/x"', "handler": "{"},
            untrusted.Runtime("kata", "/x"),
        ),
        (
            {"name": '"kata"', "binary_path": '"/x"', "handler": '{"runtime_type": 1}'},
            untrusted.Runtime("kata", "/x"),
        ),
    ],
)
def test_the_reader_takes_old_raw_and_broken_data(data, expected):
    assert untrusted.decode(data) == expected


@given(st.dictionaries(st.sampled_from(["name", "binary_path", "handler"]), st.text()))
def test_no_data_breaks_the_reader(data):
    assert untrusted.decode(data) is None or isinstance(untrusted.decode(data), untrusted.Runtime)


def test_containerd_hears_of_a_runtime(containerd):
    relation = ops.testing.SubordinateRelation(
        "untrusted", remote_app_name="kata", remote_unit_data=untrusted.encode(FULL)
    )
    after = containerd.run(
        containerd.on.relation_changed(relation),
        ops.testing.State(relations=[relation]),
    )
    assert after.unit_status == ops.testing.ActiveStatus(str(FULL))


def test_containerd_hears_that_it_went(containerd):
    relation = ops.testing.SubordinateRelation(
        "untrusted", remote_app_name="kata", remote_unit_data=untrusted.encode(PLAIN)
    )
    after = containerd.run(
        containerd.on.relation_broken(relation), ops.testing.State(relations=[relation])
    )
    assert after.unit_status == ops.testing.ActiveStatus("None")
