"""Kata's own configuration.toml, from the shipped file and the options."""
