"""Processes of engines: heard to the end, and ended with all that they started. Knows no engine."""
