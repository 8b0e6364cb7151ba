"""The machine: files, commands, systemd, what it is and what it can."""
