"""How sandboxes and their node fare, for Prometheus: Kata's own monitor, and an exporter of ours."""
