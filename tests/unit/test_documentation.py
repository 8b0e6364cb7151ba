"""Every command that the pages show is one that the charm, Juju and make would take."""

import dataclasses
import pathlib
import re
import shlex

import pytest
import yaml

from kata import settings
from kata.sandbox import report
from tests.unit.sandbox.test_picture import DRAWN, SANDBOX

TOP = pathlib.Path(__file__).parents[2]
CHARM = yaml.safe_load((TOP / "charmcraft.yaml").read_text())
OPTIONS = CHARM["config"]["options"]
PAGES = [
    *(TOP / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")),
    *sorted((TOP / "docs").rglob("*.md")),
    TOP / "terraform/README.md",
]
# The endpoints of other charms that ours go with.
PARTNERS = {
    "containerd": {"container-runtime"},
    "node": {"juju-info"},
    "untrusted": {"untrusted"},
    "kube-control": {"kube-control"},
    "cos-agent": {"cos-agent"},
}
LINUX = {"bindeb-pkg"}  # a target of the kernel's own Makefile
TROUBLE = "docs/how-to/troubleshoot.md"
CONTROLLER = re.compile(r"needs? (?:a|that|the) (?:Juju )?controller")

BLOCK = re.compile(r"^```(?:sh|console)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"(?<!`)`((?:juju|make) [^`\n]+)`(?!`)")
LINK = re.compile(r"\]\(([^)\s]+)\)")


def commands(page):
    """Return the commands of a page, each as words; a quoted value may span lines."""
    text = page.read_text()
    found = [(line, False) for line in SPAN.findall(text)]
    found += [(block.replace("\\\n", " "), True) for block in BLOCK.findall(text)]
    for source, lines in found:
        pending = ""
        for line in source.splitlines() if lines else [source]:
            pending = f"{pending}\n{line}" if pending else line
            try:
                words = shlex.split(pending, comments=True)
            except ValueError:
                continue
            pending = ""
            if words:
                yield words


def each(*first):
    """Return the commands of all pages that begin with these words, for parametrize."""
    return [
        pytest.param(words, id=f"{page.stem}: {' '.join(words)[:60]}")
        for page in PAGES
        for words in commands(page)
        if tuple(words[: len(first)]) == first
        and not {"name", "name=value", "name=file"} & set(words)  # how, not what
    ]


def _value(name, text):
    kind = OPTIONS[name]["type"]
    return {
        "string": str,
        "int": int,
        "boolean": lambda word: {"true": True, "false": False}[word],
    }[kind](text)


@pytest.mark.parametrize("words", each("juju", "config", "kata"))
def test_options_that_are_set_can_be(words):
    given = {}
    if words[3:4] == ["--reset"]:
        assert set(words[4].split(",")) <= set(OPTIONS)
        return
    for word in words[3:]:
        name, equals, text = word.partition("=")
        assert name in OPTIONS
        if equals and not text.startswith(("@", "$(")):
            given[name] = _value(name, text)
    defaults = {name: option["default"] for name, option in OPTIONS.items()}
    settings.read({**defaults, **given})


@pytest.mark.parametrize("words", each("juju", "run"))
def test_actions_that_are_run_exist(words):
    unit, name, *parameters = words[2:]
    if not unit.startswith("kata/"):
        return
    action = CHARM["actions"][name]
    for parameter in parameters:
        key, _, value = parameter.partition("=")
        about = action["params"][key]
        assert value in about.get("enum", (value,))


@pytest.mark.parametrize("words", each("juju", "integrate"))
def test_endpoints_that_are_integrated_go_together(words):
    for ours, theirs in (words[2:4], words[3:1:-1]):
        app, _, endpoint = ours.partition(":")
        if app == "kata":
            assert theirs.partition(":")[2] in PARTNERS[endpoint]


@pytest.mark.parametrize("words", each("juju", "attach-resource", "kata"))
def test_resources_that_are_attached_exist(words):
    assert words[3].partition("=")[0] in CHARM["resources"]


@pytest.mark.parametrize("words", each("make"))
def test_targets_that_are_made_exist(words):
    makefile = (TOP / "Makefile").read_text()
    targets = {
        word
        for line in re.findall(r"^([a-z -]+):", makefile, re.MULTILINE)
        for word in line.split()
    }
    assert {word for word in words[1:] if "=" not in word} <= targets | LINUX


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(TOP)))
def test_what_needs_a_controller_says_so(page):
    blocks = "\n".join(BLOCK.findall(page.read_text()))
    if re.search(r"^(juju|kubectl) ", blocks, re.MULTILINE):
        assert CONTROLLER.search(" ".join(page.read_text().split()))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(TOP)))
def test_links_lead_somewhere(page):
    for link in LINK.findall(page.read_text()):
        target, _, anchor = link.partition("#")
        if "://" in link:
            assert link.startswith("https://")
            continue
        place = (page.parent / target) if target else page
        assert place.exists(), link
        if anchor:
            titles = re.findall(r"^#+ (.*)$", place.read_text(), re.MULTILINE)
            assert anchor in {
                re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles
            }


def test_the_tutorial_shows_what_the_actions_print():
    page = (TOP / "docs/tutorial/first-pod.md").read_text()
    assert f"```text\n{DRAWN}\n```" in page
    table = report.table([dataclasses.replace(SANDBOX, ips=("10.1.39.154",))])
    assert "\n".join(f"  {line}" for line in table.splitlines()) in page


def _symptoms(path):
    rows = re.findall(r"^\| (.+?) \|", (TOP / path).read_text(), re.MULTILINE)
    return [row for row in rows if row not in ("what you see", "symptom")]


@pytest.mark.parametrize(
    "words",
    [
        "bin/charm-env",
        "failed to create shim: not found",
        "annotation starts",
        "ctr run",
        "commented out",
        "ConfigPath",
        "v1beta1",
        "LXD container",
        "which virtual machine",
        "debug console",
        "[disabled]",
    ],
)
def test_each_symptom_of_a_deployment_by_hand_leads_to_its_cause(words):
    assert any(words in row for row in _symptoms(TROUBLE))


def test_the_readme_begins_with_them():
    rows = _symptoms("README.md")
    table = rows[next(at for at, row in enumerate(rows) if "charm-env" in row) :]
    assert "bin/charm-env" in table[0]
    assert "failed to create shim" in table[1]


def test_every_status_on_its_page_is_one_of_the_codes():
    source = "\n".join(path.read_text() for path in (TOP / "src").rglob("*.py"))
    source = re.sub(r'"\n\s*f?"', "", source)  # strings that go on in the next line
    rows = re.findall(
        r"^\| (?:active|waiting|blocked) \| `(.+?)`",
        (TOP / "docs/reference/statuses.md").read_text(),
        re.MULTILINE,
    )
    assert len(rows) > 8
    for row in rows:
        # What is filled in, and what stands for more, is left out.
        fixed = re.split(r"…|'?value'?|name=|\d[\w./-]*|/\S+|\(|kata\b|path: .*|: |; ", row)
        parts = [part.strip(" ;:,.)'=") for part in fixed]
        # The first words will do: a name that is filled in may stand further on.
        begun = [" ".join(part.split()[:4]) for part in parts if len(part) > 3]
        assert all(words in source for words in begun), (row, begun)
