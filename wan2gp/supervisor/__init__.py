"""The parent process: queue, registry, handler life cycle, spool, publishing and the control socket."""
