"""Kata Containers on one node: everything that this charm does, and nothing of Juju."""
