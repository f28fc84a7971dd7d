"""`make chaos`: real workers, a stream of tasks, faults from a seed, and then the books."""
