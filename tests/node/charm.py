"""A charm as Juju unpacks it on a machine: what `charmcraft pack` would have made of the source."""

import json
import pathlib
import py_compile
import shutil
import stat
import subprocess
import sys
from typing import Any

import yaml

from tests.node import cache

REPOSITORY = pathlib.Path(__file__).parents[2]
# Every charm here runs with the requirements of this repository's.
LOCK = REPOSITORY / "requirements.txt"
PYTHON = "3.11"  # of the node
# For a charm that has none of its own, as charmcraft writes it (charmcraft/charm_builder.py).
DISPATCH = """#!/bin/sh
JUJU_DISPATCH_PATH="${JUJU_DISPATCH_PATH:-$0}" PYTHONPATH=lib:venv /usr/bin/env python3 ./src/charm.py
"""
SOURCES = ("dispatch", "src", "lib", "templates", "LICENSE")


def definition(charm: pathlib.Path) -> dict[str, Any]:
    """Return what charmcraft.yaml says."""
    return yaml.safe_load((charm / "charmcraft.yaml").read_text())


def sources_key(charm: pathlib.Path) -> str:
    """Return a digest of everything but the wheels."""
    parts = [charm / name for name in ("charmcraft.yaml", *SOURCES) if (charm / name).exists()]
    return cache.key(pathlib.Path(__file__), *parts)


def stage(charm: pathlib.Path, folder: pathlib.Path) -> None:
    """Write the charm into a folder as packed, without its wheels."""
    said = definition(charm)
    # charmcraft splits what Juju reads into three files. JSON is YAML too.
    split = {"config.yaml": said.pop("config", {}), "actions.yaml": said.pop("actions", {})}
    for name, content in {"metadata.yaml": said, **split}.items():
        (folder / name).write_text(json.dumps(content, indent=1))
    for name in SOURCES:
        source = charm / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy(source, folder)
    dispatch = folder / "dispatch"
    if not dispatch.exists():
        dispatch.write_text(DISPATCH)
    for file in (dispatch, folder / "src" / "charm.py"):
        file.chmod(file.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
    _compile(folder)


def wheels_key() -> str:
    """Return a digest of the locked requirements."""
    return cache.key(LOCK, PYTHON)


def wheels() -> pathlib.Path:
    """Return a folder with the locked requirements, installed for the node's Python."""
    return cache.made("wheels", wheels_key(), _install)


def _install(folder: pathlib.Path) -> None:
    places = [str(pathlib.Path(sys.executable).parent), str(REPOSITORY / ".cache/tools/bin")]
    uv = shutil.which("uv", path=":".join(places)) or shutil.which("uv")
    target = ["--no-deps", "--quiet", "--target", str(folder), "--python-version", PYTHON]
    if uv:
        install = [uv, "pip", "install", *target, "--python-platform", "x86_64-manylinux_2_28"]
    else:
        install = [sys.executable, "-m", "pip", "install", *target]
        install += ["--platform", "manylinux_2_28_x86_64", "--platform", "manylinux2014_x86_64"]
    done = subprocess.run([*install, "-r", LOCK], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the charm's requirements were not installed:\n{done.stderr}")
    shutil.rmtree(folder / "bin", ignore_errors=True)
    _compile(folder)


def _compile(folder: pathlib.Path) -> None:
    """Spare the first hook on the node compiling what it imports: emulation takes long for it."""
    if f"{sys.version_info[0]}.{sys.version_info[1]}" == PYTHON:
        for file in folder.rglob("*.py"):
            py_compile.compile(str(file), doraise=False, quiet=1)
