"""The same node as the unit tests have: a folder, and answers in place of commands."""

from tests.unit.conftest import node  # noqa: F401 - a fixture for all
