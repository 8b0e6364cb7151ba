"""What the tests of releases share."""

import os

import pytest


@pytest.fixture
def next_edition(monkeypatch, tmp_path):
    """Call it with a module of the charm: it is of another edition from then on."""

    def become(module):
        edition = tmp_path / "edition.py"
        edition.touch()
        os.utime(edition, (1, 1))  # a checkout may give all files one time
        monkeypatch.setattr(module, "__file__", str(edition))

    return become
