"""System calls by name, for those that the C library does not offer."""

from __future__ import annotations

import ctypes
import os

from tests.hostile.tries import checked, libc

_NUMBERS: dict[str, tuple[int, int]] = {
    "ptrace": (101, 117),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "swapon": (167, 224),
    "unshare": (272, 97),
    "setns": (308, 268),
    "clone": (56, 220),
    "clone3": (435, 435),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "kexec_load": (246, 104),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "open_by_handle_at": (304, 265),
    "name_to_handle_at": (303, 264),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424),
    "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138),
    "kcmp": (312, 272),
    "prlimit64": (302, 261),
    "ioprio_set": (251, 30),
    "open_tree": (428, 428),
    "fsopen": (430, 430),
    "move_mount": (429, 429),
    "mount_setattr": (442, 442),
    "quotactl": (179, 60),
    "acct": (163, 89),
    "syslog": (103, 116),
    "chroot": (161, 51),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
    "mq_unlink": (241, 181),
    "shmctl": (31, 195),
    "msgctl": (71, 187),
    "semctl": (66, 191),
    "migrate_pages": (256, 238),
}
"""On x86_64 and on aarch64."""


def call(name: str, *arguments: int | bytes | ctypes.Array[ctypes.c_char] | None) -> int:
    """The result. Raises :class:`OSError`."""
    number = _NUMBERS[name][os.uname().machine == "aarch64"]
    given = [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
    return checked(libc.syscall(ctypes.c_long(number), *given), name)
