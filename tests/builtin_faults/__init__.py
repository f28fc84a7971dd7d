"""Nodes that misbehave, for the built-in engine's `--extra-nodes`."""
