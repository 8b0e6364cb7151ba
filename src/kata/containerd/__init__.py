"""containerd: its configuration, its restarts, the start-up guard, and its API."""
