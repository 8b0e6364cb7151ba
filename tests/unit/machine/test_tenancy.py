"""Several units of the charm on one machine: one works, the others stand by."""

from kata.machine import tenancy


def _agents(node, *units):
    for unit in units:
        node.path(f"/var/lib/juju/agents/unit-{unit.replace('/', '-')}").mkdir(parents=True)


def test_the_first_works_and_the_second_stands_by(node):
    _agents(node, "kata/0", "kata-b/3")
    assert tenancy.join(node, "kata/0") == "kata/0"
    assert tenancy.join(node, "kata-b/3") == "kata/0"
    assert tenancy.join(node, "kata/0") == "kata/0"


def test_the_next_takes_over(node):
    _agents(node, "kata/0", "kata-b/3")
    tenancy.join(node, "kata/0")
    tenancy.join(node, "kata-b/3")
    assert not tenancy.is_alone(node, "kata/0")
    assert tenancy.leave(node, "kata/0") == "kata-b/3"
    assert tenancy.is_alone(node, "kata-b/3")
    assert tenancy.leave(node, "kata-b/3") is None
    assert node.tree(tenancy.STATE) == {}


def test_a_unit_that_left_without_a_word_holds_nothing_up(node):
    _agents(node, "kata-b/3")
    tenancy.join(node, "kata/0")
    assert tenancy.join(node, "kata-b/3") == "kata-b/3"


def test_a_list_that_is_no_list_is_begun_anew(node):
    _agents(node, "kata/0")
    for broken in ("{", '"kata"', "[1]", "{}", ""):
        node.lay({"/var/lib/kata-charm/units.json": broken})
        assert tenancy.join(node, "kata/0") == "kata/0"


def test_only_root_sees_the_state(node):
    tenancy.join(node, "kata/0")
    assert node.path(tenancy.STATE).stat().st_mode & 0o777 == 0o700
    assert node.path("/var/lib/kata-charm/units.json").stat().st_mode & 0o777 == 0o600
