"""What Charmhub's public listing asks for, and what an operator may expect of every option."""

import json
import os
import pathlib
import re
import xml.etree.ElementTree as ET

import pytest
import yaml

from kata import handlers, settings
from kata.containerd import sections
from tests.unit.kata_releases import install, options

TOP = pathlib.Path(__file__).parents[3]
CHARM = yaml.safe_load((TOP / "charmcraft.yaml").read_text())
OPTIONS = CHARM["config"]["options"]
ENDPOINTS = {**CHARM["requires"], **CHARM.get("provides", {}), **CHARM.get("peers", {})}
WORKFLOWS = sorted((TOP / ".github/workflows").glob("*.yaml"))
GPU_OVERHEAD = ("2048Mi", "1")
# Another value for each option that containerd might have to hear of.
OTHER = {
    "runtime-class": "kata-qemu",
    "extra-runtime-classes": "kata-clh=clh",
    "snapshotter": "devmapper",
    "untrusted-annotation": False,
    "gpu-mode": "passthrough",
    "gpu-runtime-class": "kata-nvidia",
    "hypervisor": "clh",
    "overhead-memory": "640Mi",
    "overhead-cpu": "1",
    "default-vcpus": 4,
    "default-memory": 4096,
    "enable-annotations": "default_vcpus",
    "debug-console": True,
    "kata-config": "[hypervisor.qemu]\nenable_debug = true\n",
    "gpu-plug": "pcie",
    "gpu-guest-kernel": "/srv/vmlinuz",
    "gpu-guest-image": "/srv/image",
    "label-nodes": False,
}


def _dashed(name):
    return re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name)


def test_the_charm_says_what_it_is_and_where_it_lives():
    for key in ("name", "title", "summary", "description"):
        assert CHARM[key].strip(), key
    assert len(CHARM["description"].split("\n\n")) >= 3
    for link in ("documentation", "source", "issues", "website", "contact"):
        assert CHARM["links"][link].startswith("https://"), link


@pytest.mark.parametrize("part", ["config", "actions", "endpoints", "resources", "params"])
def test_names_are_dashed(part):
    names = {
        "config": OPTIONS,
        "actions": CHARM["actions"],
        "endpoints": ENDPOINTS,
        "resources": CHARM["resources"],
        "params": [name for each in CHARM["actions"].values() for name in each.get("params", ())],
    }[part]
    assert all(_dashed(name) for name in names), names


def test_endpoints_say_whether_they_are_optional_and_what_for():
    for name, endpoint in ENDPOINTS.items():
        assert isinstance(endpoint["optional"], bool), name
        assert endpoint["description"].strip(), name


def test_the_platforms():
    found = sorted(CHARM["platforms"])
    assert found == sorted(
        f"ubuntu@{base}:{arch}"
        for base in ("22.04", "24.04", "26.04")
        for arch in ("amd64", "arm64")
    )


def test_the_icon_is_a_square_of_100_and_is_packed():
    root = ET.parse(TOP / "icon.svg").getroot()
    assert (root.get("width"), root.get("height")) == ("100", "100")
    assert any("icon.svg" in part.get("prime", ()) for part in CHARM["parts"].values())


def test_dispatch_leads_to_the_entry_point_and_is_packed():
    last = (TOP / "dispatch").read_text().splitlines()[-1]
    entry = TOP / last.split()[-1]
    assert entry.name == "charm.py"
    for path in (TOP / "dispatch", entry):
        assert os.access(path, os.X_OK)
    assert any("dispatch" in part.get("prime", ()) for part in CHARM["parts"].values())


def test_a_library_says_what_charmcraft_asks_of_it():
    for path in (TOP / "lib/charms/kata").rglob("*.py"):
        text = path.read_text()
        assert re.search(r'^LIBID = "[!-~]+"$', text, re.MULTILINE)
        api, patch = (
            int(re.search(rf"^{name} = (\d+)$", text, re.MULTILINE)[1])
            for name in ("LIBAPI", "LIBPATCH")
        )
        assert path.parent.name == f"v{api}"
        assert api or patch


def test_the_usual_commands_and_papers():
    tox, make = (TOP / "tox.ini").read_text(), (TOP / "Makefile").read_text()
    for command in ("format", "lint", "unit", "integration"):
        assert f"[testenv:{command}" in tox
        assert re.search(rf"^{command}:", make, re.MULTILINE), command
    for paper in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "LICENSE", "CHANGELOG.md"):
        assert (TOP / paper).stat().st_size
    assert 'requires-python = ">=3.10"' in (TOP / "pyproject.toml").read_text()


def test_the_locks_pin_by_digest_and_name_no_index():
    for lock in ("requirements.txt", "requirements-dev.txt", "requirements-integration.txt"):
        text = (TOP / lock).read_text()
        assert text.count("--hash=sha256:") >= text.count("==") > 0
        assert "://" not in text
        assert "--index-url" not in text


# Automation


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_pins_by_digest_and_may_do_little(path):
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {}
    for job in workflow["jobs"].values():
        assert set(job["permissions"].items()) <= {("contents", "read")}
        for step in job.get("steps", ()):
            used = step.get("uses")
            assert used is None or re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", used), used
    # Each digest is followed by the version that it stands for.
    assert not re.search(r"@[0-9a-f]{40}(?! # v\d)", path.read_text())


def test_every_python_and_every_platform_has_its_job():
    jobs = {path.stem: yaml.safe_load(path.read_text())["jobs"] for path in WORKFLOWS}
    tox = (TOP / "tox.ini").read_text()
    pythons = jobs["tests"]["unit"]["strategy"]["matrix"]["python"]
    assert pythons == ["3.10", "3.11", "3.12", "3.13", "3.14"]
    assert all(f"py{version.replace('.', '')}" in tox for version in pythons)
    packed = jobs["pack"]["pack"]["strategy"]["matrix"]
    assert {f"ubuntu@{base}:{arch}" for base in packed["base"] for arch in packed["arch"]} == set(
        CHARM["platforms"]
    )
    assert set(jobs["release"]["release"]["needs"]) == {"tests", "pack"}
    upload = jobs["release"]["release"]["steps"][-1]["run"]
    assert all(f"--resource {name}:" in upload for name in CHARM["resources"])


def test_terraform_knows_the_endpoints_and_explains_its_variables():
    folder = TOP / "terraform"
    outputs = (folder / "outputs.tf").read_text()
    for role in ("requires", "provides"):
        block = re.search(rf'output "{role}" {{.*?value *= *{{(.*?)}}', outputs, re.DOTALL)[1]
        assert set(re.findall(r'= "([\w-]+)"', block)) == set(CHARM.get(role, {}))
    variables = re.findall(
        r'^variable "(\w+)"', (folder / "variables.tf").read_text(), re.MULTILINE
    )
    assert variables
    page = (folder / "README.md").read_text()
    assert all(f"| `{name}` |" in page for name in variables)
    assert all(
        base.rpartition(":")[0] in outputs + (folder / "variables.tf").read_text()
        for base in CHARM["platforms"]
    )


# Options


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_says_more_than_its_name(name):
    option = OPTIONS[name]
    assert option["type"] in ("string", "int", "boolean")
    assert "default" in option
    assert len(option["description"].split()) >= 8
    # Where a number is expected, its unit or what it counts.
    if option["type"] == "int":
        assert re.search(r"MiB|vCPUs|vGPUs|Port", option["description"])


def _sections(node, changed):
    asked = options(**{"gpu_mode": "passthrough", **changed})
    overhead = None if asked.gpu_mode == "none" else GPU_OVERHEAD
    wanted = handlers.wanted(asked, install(node, "4.1.0"), (2, 0, 0), overhead)
    return json.dumps(sections.render(wanted, (2, 0, 0)))


@pytest.mark.parametrize("name", OTHER)
def test_a_description_tells_the_truth_about_containerds_restart(node, name):
    before = {"gpu_mode": "none"} if name == "gpu-mode" else {}
    changed = _sections(node, before) != _sections(node, {name.replace("-", "_"): OTHER[name]})
    words = " ".join(OPTIONS[name]["description"].split())
    said = bool(re.search(r"restarts\s+containerd", words))
    assert said == changed
    if not changed and name != "label-nodes":
        assert "containerd is not restarted" in words


def test_every_option_is_read():
    assert set(OPTIONS) == set(settings.OPTIONS)
