"""Throwaway nodes for tests: each starts fresh, from a state that was saved once."""

import pytest

from tests.node import machine, snapshot


@pytest.fixture(scope="session")
def booted():
    """A node that has booted and done nothing yet, saved."""
    return snapshot.booted()


@pytest.fixture
def node(booted):
    """A fresh node of the test's own."""
    with machine.Machine.restored(booted) as restored:
        yield restored
