"""What containerd and Kata are configured with, and what of it is ours."""

import pytest

from kata import problems
from kata.checks import shown_config
from tests.unit import containerd_machine, kata_machine

MAIN = containerd_machine.MAIN
KATA = "/etc/kata-containers/configuration.toml"


@pytest.fixture
def containerd(node, monkeypatch, tmp_path):
    return kata_machine.make(node, monkeypatch, tmp_path)


def look(node, containerd):
    return shown_config.look(node, containerd.find())


def test_our_part_of_the_live_file(node, containerd):
    shown = look(node, containerd)
    assert shown.live == MAIN
    assert shown.files == (MAIN,)
    added = [line for line in shown.ours.splitlines() if line.startswith("+")]
    assert any("runtimes.kata" in line for line in added)
    assert not any(line.startswith("-") and line[1:2] != "-" for line in shown.ours.splitlines())
    assert "sandbox_image" not in "".join(added), "what is others' is none of it"
    assert (shown.drift, shown.notes) == ("", ())


def test_what_others_have_changed_of_it(node, containerd):
    node.lay({MAIN: containerd_machine.CONFIG})
    shown = look(node, containerd)
    assert shown.ours == ""
    assert any(
        line.startswith("+") and "runtimes.kata" in line for line in shown.drift.splitlines()
    )


def test_kata_as_it_differs_from_the_shipped_file(node, containerd):
    difference = look(node, containerd).kata[KATA]
    assert difference == "as shipped\n"


def test_and_with_an_option(node, containerd, tmp_path):
    from kata import workload

    options = kata_machine.options(default_memory=512)
    archive = next(tmp_path.glob("kata-static*"))
    workload.ensure(node, options, {"kata-archive": archive}, lambda _: None)
    lines = look(node, containerd).kata[KATA].splitlines()
    assert "+default_memory = 512" in lines
    assert any(line.startswith("-default_memory") for line in lines)


def test_an_edit_by_hand_is_said(node, containerd):
    text = node.read(KATA)
    node.path(KATA).write_text(text + "# mine\n")
    shown = look(node, containerd)
    assert shown.notes == (f"{KATA}: edited by hand",)
    assert "+# mine" in shown.kata[KATA].splitlines()


def test_before_the_charm_has_done_anything(node):
    containerd = containerd_machine.FakeContainerd(node)
    shown = look(node, containerd)
    assert (shown.ours, shown.drift, shown.kata) == ("", "", {})
    assert shown.notes == (
        "this charm has written no handler yet",
        f"{MAIN} is not there: containerd runs with its defaults",
    )


def test_a_file_that_is_no_toml(node, containerd):
    node.lay({MAIN: "[broken"})
    with pytest.raises(problems.Blocked, match=f"{MAIN} is no TOML"):
        look(node, containerd)


@pytest.mark.parametrize(
    ("before", "after", "lines"),
    [
        ("a\n", "a\n", []),
        ("a\n", "a\nb\n", ["--- f", "+++ f", "@@ -1 +1,2 @@", " a", "+b"]),
        ("", "b", ["--- f", "+++ f", "@@ -0,0 +1 @@", "+b"]),
    ],
)
def test_a_difference(before, after, lines):
    assert shown_config.difference(before, after, "f").splitlines() == lines
