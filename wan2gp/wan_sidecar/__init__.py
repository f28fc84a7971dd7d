"""Wan2GP as a component: a process that runs it, and what it says. Knows nothing of tasks."""
