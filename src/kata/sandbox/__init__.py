"""Sandboxes that run: found, drawn, and booted to prove isolation."""
