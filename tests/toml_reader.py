"""TOML, read by another library than the one that writes it, where Python has one."""

import sys

if sys.version_info >= (3, 11):
    from tomllib import loads as parse
else:
    import tomlkit

    def parse(text):
        """Return what a TOML text says."""
        return tomlkit.parse(text).unwrap()


__all__ = ["parse"]
