"""The tables of our handlers, by containerd's release."""

import pytest
import tomlkit

from kata.containerd import sections as containerd_sections
from kata.containerd.config import CRI, SHIM
from kata.release import release
from tests.unit.containerd_machine import handler

CONFIGURED = handler("kata", config_path=True, snapshotter="devmapper")


def runtimes(handlers, version, schema="v2"):
    text = containerd_sections.render(handlers, version)[schema]
    return tomlkit.parse(text).unwrap()["plugins"][CRI[schema]]["containerd"]


@pytest.mark.parametrize(
    ("version", "keys"),
    [
        ((1, 2, 0), {"runtime_type"}),
        ((1, 3, 0), {"runtime_type", "pod_annotations", "privileged_without_host_devices"}),
        ((1, 5, 18), {"container_annotations"}),
        ((1, 6, 0), {"runtime_path"}),
        ((1, 7, 0), {"snapshotter"}),
    ],
)
def test_only_keys_that_the_release_knows(version, keys):
    earlier = (version[0], version[1] - 1, 99)
    now = runtimes([CONFIGURED], version)["runtimes"]["kata"]
    before = runtimes([CONFIGURED], earlier)["runtimes"]["kata"]
    added = set(now) - set(before) if version > (1, 2, 0) else set(now) - {"options"}
    assert keys >= added
    assert keys <= set(now)


def test_options_are_the_path_of_the_configuration_or_none_at_all():
    found = runtimes([CONFIGURED, handler("untrusted")], (1, 7, 30))["runtimes"]
    assert found["kata"]["options"] == {"ConfigPath": CONFIGURED.configuration}
    assert "options" not in found["untrusted"]


def test_untrusted_is_a_handler_where_it_can_be():
    both = [handler("kata"), handler("untrusted")]
    assert set(runtimes(both, (1, 3, 0))) == {"runtimes"}
    assert set(runtimes(both, (1, 2, 16))) == {"runtimes", "untrusted_workload_runtime"}
    assert set(runtimes(both, (1, 2, 16))["runtimes"]) == {"kata"}


def test_every_schema_says_the_same():
    said = [runtimes([CONFIGURED], (2, 0, 0), schema) for schema in CRI]
    assert said[0] == said[1] == said[2]


def test_the_shim_is_where_the_release_puts_it():
    assert SHIM == release.SHIM_LINK
    assert SHIM.rpartition("/")[2] == "containerd-shim-kata-v2"  # io.containerd.kata.v2 by name


def test_values_are_quoted():
    odd = handler("kata", config_path=True)
    odd.configuration = '/etc/"a\\b\x7f\n'
    assert runtimes([odd], (2, 0, 0))["runtimes"]["kata"]["options"] == {
        "ConfigPath": odd.configuration
    }


def test_the_source_tells_all_that_matters():
    sources = {
        containerd_sections.source(*made)
        for made in (
            ([handler("kata")], (1, 6, 0)),
            ([handler("kata", config_path=True)], (1, 6, 0)),
            ([handler("kata")], (1, 3, 0)),
            ([handler("kata"), handler("untrusted")], (1, 6, 0)),
        )
    }
    assert len(sources) == 4
