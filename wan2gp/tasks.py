"""What a task is, spelled once: its statuses and the kinds of outcome the parent and the children share."""

from __future__ import annotations

import enum


class TaskStatus(enum.Enum):
    """The status strings of the ``tasks`` table, exactly as the database spells them."""

    QUEUED = "Queued"
    """Waiting to be claimed; ``run_after`` and open dependencies may hold it back."""
    IN_PROGRESS = "In Progress"
    """Claimed by a worker, or a parent that waits for its children."""
    COMPLETE = "Complete"
    """Finished with an artifact. Final."""
    FAILED = "Failed"
    """Given up, with ``code: sentence`` in ``error_message``. Final."""
    CANCELLED = "Cancelled"
    """Cancelled by its user. Final, whatever arrives late."""

    @property
    def final(self) -> bool:
        """True when the status can no longer change by work alone."""
        return self in (TaskStatus.COMPLETE, TaskStatus.FAILED, TaskStatus.CANCELLED)
