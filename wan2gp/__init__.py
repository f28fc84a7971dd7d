"""A GPU worker: claims rows of a ``tasks`` table, runs each in a sandboxed process, publishes the result."""

__version__ = "0.1.0"
