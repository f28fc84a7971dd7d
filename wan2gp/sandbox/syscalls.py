"""Numbers of the system calls that the filter knows, by machine.

Source: ``asm/unistd_64.h`` of x86_64, and ``asm-generic/unistd.h``, which aarch64 has.
"""

from __future__ import annotations

_TABLE = """
acct 163 89
add_key 248 217
adjtimex 159 171
bpf 321 280
chmod 90 -
chown 92 -
chroot 161 51
clock_adjtime 305 266
clock_settime 227 112
clone 56 220
clone3 435 435
create_module 174 -
delete_module 176 106
fanotify_init 300 262
fchmod 91 52
fchmodat 268 53
fchmodat2 452 452
fchown 93 55
fchownat 260 54
file_setattr 469 469
finit_module 313 273
fremovexattr 199 16
fsconfig 431 431
fsetxattr 190 7
fsmount 432 432
fsopen 430 430
fspick 433 433
init_module 175 105
io_uring_enter 426 426
io_uring_register 427 427
io_uring_setup 425 425
ioctl 16 29
ioperm 173 -
iopl 172 -
ioprio_set 251 30
kexec_file_load 320 294
kexec_load 246 104
keyctl 250 219
lchown 94 -
lookup_dcookie 212 18
lremovexattr 198 15
lsetxattr 189 6
migrate_pages 256 238
modify_ldt 154 -
mount 165 40
mount_setattr 442 442
move_mount 429 429
move_pages 279 239
msgctl 71 187
msgget 68 186
msgrcv 70 188
msgsnd 69 189
nfsservctl 180 42
open 2 -
open_by_handle_at 304 265
open_tree 428 428
open_tree_attr 467 467
openat 257 56
openat2 437 437
perf_event_open 298 241
pidfd_getfd 438 438
pivot_root 155 41
prlimit64 302 261
process_vm_readv 310 270
process_vm_writev 311 271
ptrace 101 117
quotactl 179 60
quotactl_fd 443 443
reboot 169 142
removexattr 197 14
removexattrat 466 466
request_key 249 218
sched_setattr 314 274
sched_setparam 142 118
sched_setscheduler 144 119
semctl 66 191
semget 64 190
semop 65 193
semtimedop 220 192
sendmmsg 307 269
sendmsg 46 211
sendto 44 206
setdomainname 171 162
sethostname 170 161
setns 308 268
setpriority 141 140
settimeofday 164 170
setxattr 188 5
setxattrat 463 463
shmat 30 196
shmctl 31 195
shmget 29 194
socket 41 198
socketpair 53 199
swapoff 168 225
swapon 167 224
sysfs 139 -
syslog 103 116
truncate 76 45
umount2 166 39
unshare 272 97
uselib 134 -
userfaultfd 323 282
vhangup 153 58
"""


def _column(index: int) -> dict[str, int]:
    rows = (line.split() for line in _TABLE.split("\n") if line)
    return {row[0]: int(row[index]) for row in rows if row[index] != "-"}


NUMBERS: dict[str, dict[str, int]] = {"x86_64": _column(1), "aarch64": _column(2)}
"""By machine, as ``uname -m`` names it, and by name; a machine lacks those that it does not have."""
