"""What is asked when something is wrong: requirements, causes, live configuration."""
