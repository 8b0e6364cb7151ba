"""Releases of Kata: where they come from, how they are verified, unpacked, switched and removed."""
