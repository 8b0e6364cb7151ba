"""The cluster: RuntimeClasses and node labels, over the API."""
