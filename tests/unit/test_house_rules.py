"""Rules of safety that the source itself must show: they hold for code that no test runs."""

import ast
import pathlib

import pytest

from kata.machine import node

SRC = pathlib.Path(node.__file__).parents[2]
MODULES = sorted(SRC.rglob("*.py"))
# The one door to commands, what boots without the charm, and an exception that is caught by name.
STARTS_PROGRAMS = {"kata/machine/node.py", "kata/gpu/vgpu_boot.py", "kata/release/packages.py"}
# Modules and names by which code gets into a shell, or text into code.
NEVER = {
    *("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"),
    *("os.execv", "os.execvp", "os.spawnl", "os.spawnvp", "pty.spawn", "eval", "exec"),
    *("pickle.load", "pickle.loads", "marshal.loads", "yaml.load", "shelve.open"),
    *("tempfile.mktemp", "ssl._create_unverified_context", "ssl.create_default_context"),
}
# What waits for somebody else, and must be told for how long.
WAITS = {"run", "check_call", "check_output", "call", "Popen", "urlopen", "open_connection"}


def name_of(function):
    """Return a called function as it is written, such as `os.system`."""
    if isinstance(function, ast.Attribute):
        return f"{name_of(function.value)}.{function.attr}"
    return function.id if isinstance(function, ast.Name) else ""


def calls(path):
    tree = ast.parse(path.read_text())
    return [each for each in ast.walk(tree) if isinstance(each, ast.Call)]


@pytest.fixture(params=MODULES, ids=lambda path: str(path.relative_to(SRC)))
def module(request):
    return request.param


def test_no_shell_and_no_code_out_of_text(module):
    for call in calls(module):
        assert name_of(call.func) not in NEVER, f"line {call.lineno}"
        assert not [each for each in call.keywords if each.arg == "shell"], f"line {call.lineno}"


def test_programs_start_in_one_place(module):
    tree = ast.parse(module.read_text())
    imported = {
        alias.name.partition(".")[0]
        for each in ast.walk(tree)
        if isinstance(each, (ast.Import, ast.ImportFrom))
        for alias in (
            each.names if isinstance(each, ast.Import) else [ast.alias(each.module or "")]
        )
    }
    if imported & {"subprocess", "pty", "multiprocessing", "asyncio"}:
        assert str(module.relative_to(SRC)) in STARTS_PROGRAMS


def test_whatever_waits_has_a_time_limit(module):
    for call in calls(module):
        name = name_of(call.func)
        if name.startswith("subprocess.") and name.rpartition(".")[2] in WAITS:
            assert "timeout" in {each.arg for each in call.keywords}, f"line {call.lineno}"
        if name.endswith((".urlopen", "HTTPSConnection", "HTTPConnection")) and call.args:
            assert "timeout" in {each.arg for each in call.keywords}, f"line {call.lineno}"


def test_sockets_have_a_time_limit(module):
    text = module.read_text()
    if "socket.socket(" in text:
        assert "settimeout(" in text


def test_nothing_below_kata_knows_of_juju(module):
    if "kata" in module.relative_to(SRC).parts:
        names = {
            alias.name
            for each in ast.walk(ast.parse(module.read_text()))
            if isinstance(each, ast.Import)
            for alias in each.names
        }
        assert not {each for each in names if each.partition(".")[0] == "ops"}


def test_the_linter_looks_for_faults_of_security():
    rules = (SRC.parent / "pyproject.toml").read_text()
    assert 'select = ["ALL"]' in rules
    ignored = rules.partition("ignore = [")[2].partition("]")[0]
    # S404 and S603 object to any subprocess at all; the tests above say which are allowed.
    assert {
        each
        for each in ignored.replace('"', " ").replace(",", " ").split()
        if each[:2] in ("S1", "S2", "S3", "S4", "S5", "S6", "S7")
    } == {"S404", "S603"}


def test_programs_are_found_on_a_fixed_path_alone(tmp_path, monkeypatch):
    evil = tmp_path / "evil"
    evil.mkdir()
    (evil / "uname").write_text("#!/bin/sh\necho evil\n")
    (evil / "uname").chmod(0o755)
    monkeypatch.setenv("PATH", f"{evil}:/usr/bin:/bin")
    monkeypatch.setenv("LD_PRELOAD", "")
    monkeypatch.setenv("PYTHONPATH", str(evil))
    machine = node.Node()
    assert machine.run("uname").out != "evil\n"
    seen = dict(line.split("=", 1) for line in machine.run("env").out.splitlines())
    assert seen.keys() <= {"PATH", "LANG", "HOME", *node.PASSED_ON}
    assert seen["PATH"] == node.PATH
    assert all(each.startswith("/") for each in node.PATH.split(":"))
