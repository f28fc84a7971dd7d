"""What confines a handler's process: one module per interface of the kernel, applied in :mod:`wan2gp.sandbox.enter`.

Standard library only: the shim imports it, and so may the supervisor and ``doctor``.
"""
