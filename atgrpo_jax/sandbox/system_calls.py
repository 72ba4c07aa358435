"""Makes filters of system calls (seccomp): what a program may ask of Linux, and with which arguments."""

import errno
import platform
import resource
import struct
from collections.abc import Sequence

# The number of each allowed call on x86_64 and on aarch64 (None: there is no such call). All others
# are refused: sockets, new programs, changes of file names, access to other processes, and so on.
_CALLS = {
    "read": (0, 63), "write": (1, 64), "close": (3, 57), "stat": (4, None), "fstat": (5, 80),
    "lstat": (6, None), "newfstatat": (262, 79), "statx": (332, 291), "access": (21, None),
    "faccessat": (269, 48), "faccessat2": (439, 439),
    "getcwd": (79, 17), "getdents": (78, None), "getdents64": (217, 61), "lseek": (8, 62),
    "pread64": (17, 67), "pwrite64": (18, 68), "readv": (19, 65), "writev": (20, 66), "poll": (7, None),
    "ppoll": (271, 73), "select": (23, None), "pselect6": (270, 72), "epoll_create1": (291, 20),
    "epoll_ctl": (233, 21), "epoll_wait": (232, None), "epoll_pwait": (281, 22), "pipe": (22, None),
    "pipe2": (293, 59), "eventfd2": (290, 19), "dup": (32, 23), "dup2": (33, None), "dup3": (292, 24),
    "close_range": (436, 436), "mmap": (9, 222), "mprotect": (10, 226), "munmap": (11, 215),
    "mremap": (25, 216), "brk": (12, 214), "futex": (202, 98),
    "membarrier": (324, 283), "rseq": (334, 293), "set_tid_address": (218, 96),
    "set_robust_list": (273, 99), "exit": (60, 93), "exit_group": (231, 94), "getpid": (39, 172),
    "gettid": (186, 178), "getppid": (110, 173), "getuid": (102, 174), "geteuid": (107, 175),
    "getgid": (104, 176), "getegid": (108, 177), "getgroups": (115, 158), "uname": (63, 160),
    "sysinfo": (99, 179), "getrusage": (98, 165), "times": (100, 153), "getrlimit": (97, 163),
    "arch_prctl": (158, None), "sched_yield": (24, 124), "sched_getaffinity": (204, 123),
    "getcpu": (309, 168), "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139), "rt_sigpending": (127, 136), "rt_sigtimedwait": (128, 137),
    "rt_sigsuspend": (130, 133), "sigaltstack": (131, 132), "restart_syscall": (219, 128),
    "nanosleep": (35, 101), "clock_nanosleep": (230, 115), "clock_gettime": (228, 113),
    "clock_getres": (229, 114), "gettimeofday": (96, 169), "time": (201, None), "setitimer": (38, 103),
    "getitimer": (36, 102), "alarm": (37, None), "pause": (34, None), "getrandom": (318, 278),
}  # fmt: skip
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column above, kernel id

_LOAD = 0x20
_EQUAL = 0x15
_ANY_BIT = 0x45
_RETURN = 0x06
_ALLOW = 0x7FFF0000

# Offsets in the data about a call that a filter sees.
_NUMBER = 0
_MACHINE = 4

_ITSELF = 0x7E1F5E1F  # stands for the id of a process that does not exist yet; above all ids
# Flags of clone.
_THREAD = 0x10000
_NAMESPACES = 0x7E020080
_WRITING = 0o1 | 0o2 | 0o100 | 0o1000  # flags of open
# For ioctl: ask whether it is a terminal, count waiting bytes, set or clear close-on-exec.
_TERMINAL = (0x5401, 0x541B, 0x5450, 0x5451)
_FCNTL = (0, 1, 2, 3, 4, 1030)  # duplicates and flags; not the process that gets signals
_NAMES = (15, 16, 0x53564D41)  # for prctl: names of threads and of memory
# Allowed advice about memory. Advice to merge equal pages of processes, or to break pages, is not
# in it.
_ADVICE = (*range(5), 8, *range(9, 12), *range(14, 26), 102, 103)


def seccomp_known() -> bool:
    """Returns whether this module has a table of system calls for this machine."""
    return platform.system() == "Linux" and platform.machine() in _ARCHITECTURES


def computing() -> bytes:
    """Returns a filter for ``kernel.deny_calls``. It fits any process, so that it is made only once."""
    return filter_for(platform.machine(), _ITSELF)


def own(filter: bytes, pid: int) -> bytes:
    """Returns the filter of ``computing`` for one process."""
    return filter.replace(struct.pack("I", _ITSELF), struct.pack("I", pid))


def filter_for(machine: str, pid: int) -> bytes:
    """Returns a filter's instructions, for a processor and a process.

    A call that they do not allow fails with an error.
    """
    column, architecture = _ARCHITECTURES[machine]
    special = {
        "open": (2, None, _unless_any_bit(1, _WRITING, errno.EACCES)),
        "openat": (257, 56, _unless_any_bit(2, _WRITING, errno.EACCES)),
        "openat2": (437, 437, [_refuse(errno.ENOSYS)]),
        "clone": (56, 220, _thread()),
        "clone3": (435, 435, [_refuse(errno.ENOSYS)]),  # a filter cannot see its flags
        "madvise": (28, 233, _if_one_of(2, _ADVICE, errno.EPERM)),
        "kill": (62, 129, _if_one_of(0, (pid,), errno.EPERM)),
        "tgkill": (234, 131, _if_one_of(0, (pid,), errno.EPERM)),
        # Limits may be read, not set. Setting the stack's limit does nothing, and is no error: the
        # stack is already as large as it can be.
        "prlimit64": (302, 261, [*_if_null(2)[:-1], *_nothing_if(1, resource.RLIMIT_STACK)]),
        "ioctl": (16, 29, _if_one_of(1, _TERMINAL, errno.ENOTTY)),
        "fcntl": (72, 25, _if_one_of(1, _FCNTL, errno.EPERM)),
        "prctl": (157, 167, _if_one_of(0, _NAMES, errno.EPERM)),
    }
    code = [_load(_MACHINE), _jump(_EQUAL, architecture, 1, 0), _refuse(errno.ENOSYS), _load(_NUMBER)]
    for numbers in _CALLS.values():
        code += _on(numbers[column], [_instruction(_RETURN, _ALLOW)])
    for on_x86, on_arm, body in special.values():
        code += _on((on_x86, on_arm)[column], body)
    return b"".join([*code, _refuse(errno.EPERM)])


def _on(number: int | None, body: Sequence[bytes]) -> list[bytes]:
    """Returns instructions that run ``body`` for the call of that number. ``body`` must return."""
    return [] if number is None else [_jump(_EQUAL, number, 0, len(body)), *body]


def _unless_any_bit(argument: int, bits: int, code: int) -> list[bytes]:
    return [_load(_low(argument)), _jump(_ANY_BIT, bits, 1, 0), _instruction(_RETURN, _ALLOW), _refuse(code)]


def _thread() -> list[bytes]:
    return [
        _load(_low(0)), _jump(_ANY_BIT, _THREAD, 0, 2), _jump(_ANY_BIT, _NAMESPACES, 1, 0),
        _instruction(_RETURN, _ALLOW), _refuse(errno.EPERM),
    ]  # fmt: skip


def _if_one_of(argument: int, values: Sequence[int], code: int) -> list[bytes]:
    body = [_load(_low(argument))]
    for value in values:
        body += [_jump(_EQUAL, value, 0, 1), _instruction(_RETURN, _ALLOW)]
    return [*body, _refuse(code)]


def _if_null(argument: int) -> list[bytes]:
    return [
        _load(_low(argument)), _jump(_EQUAL, 0, 0, 3), _load(_low(argument) + 4), _jump(_EQUAL, 0, 0, 1),
        _instruction(_RETURN, _ALLOW), _refuse(errno.EPERM),
    ]  # fmt: skip


def _nothing_if(argument: int, value: int) -> list[bytes]:
    """Makes a call do nothing and succeed if an argument has that value; else it is refused."""
    return [_load(_low(argument)), _jump(_EQUAL, value, 0, 1), _refuse(0), _refuse(errno.EPERM)]


def _low(argument: int) -> int:
    """Returns the offset of an argument's lower half, on little-endian machines."""
    return 16 + 8 * argument


def _load(offset: int) -> bytes:
    return _instruction(_LOAD, offset)


def _refuse(code: int) -> bytes:
    return _instruction(_RETURN, 0x00050000 | code)


def _jump(kind: int, value: int, yes: int, no: int) -> bytes:
    return _instruction(kind, value, yes, no)


def _instruction(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
    return struct.pack("HBBI", code, yes, no, value)
