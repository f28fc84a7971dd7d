"""Handlers that misbehave, one vice a file, and two that behave; the tests' worker loads them as a plug-in."""
