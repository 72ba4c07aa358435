"""Gives up rights of a process for good: system calls (seccomp) and files (Landlock) on Linux.

It uses ctypes. Neither needs a library, a privilege or a container's permission. sandbox/worker.py
uses it in the process that is about to run a program.
"""

import ctypes
import errno
import os
import platform
import resource
import struct
from collections.abc import Iterable, Sequence

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

# For prctl.
_PARENT_ENDS = 1
_NO_NEW_PRIVILEGES = 38
_SECCOMP = 22
_FILTER = 2
_NEVER_AGAIN = 24

# For unshare.
_NEW_FILES = 0x20000
_NEW_NAME = 0x4000000
_NEW_USER = 0x10000000

# For mount and umount.
_BIND = 0x1000
_BELOW = 0x4000
_PRIVATE = 1 << 18
_NO_SUID_OR_DEVICES = 2 | 4
_DETACH = 2
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_CAPABILITIES = struct.pack("Ii", 0x20080522, 0)  # version 3, of this process

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

_RESTRICT = (444, 445, 446)  # Landlock: make a ruleset, add a rule, obey it
_READ_FILE = 1 << 2
_READ_FOLDER = 1 << 3
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}  # by version; later versions: 16

_libc = ctypes.CDLL(None, use_errno=True)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


class _Reads(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("allowed", ctypes.c_uint64), ("folder", ctypes.c_int32))


def seccomp_known() -> bool:
    """Returns whether this module has a table of system calls for this machine."""
    return platform.system() == "Linux" and platform.machine() in _ARCHITECTURES


def landlock_version() -> int:
    """Returns the version of Landlock; 0 where the kernel has none."""
    return max(0, _libc.syscall(_RESTRICT[0], None, 0, 1)) if platform.system() == "Linux" else 0


def end_with_parent() -> None:
    """Makes the kernel kill this process when its parent ends. Raises OSError."""
    _check(_libc.prctl(_PARENT_ENDS, 9, 0, 0, 0))


def deny_privileges() -> None:
    """Prevents programs that this process starts from gaining rights. Raises OSError."""
    _check(_libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0))


def deny_capabilities() -> None:
    """Gives up all capabilities, that is, all that only root may do. Raises OSError."""
    for capability in range(64):
        if _libc.prctl(_NEVER_AGAIN, capability, 0, 0, 0) < 0:
            # No more exist, or this process may not drop them: then ``deny_privileges`` is enough.
            break
    _check(_libc.capset(_CAPABILITIES, bytes(24)))


def become(user: int) -> None:
    """Makes this process that user's, in no other group. Raises OSError unless it runs as root."""
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


def own_user() -> bool:
    """Moves this process to a user namespace where it is alone, with a host name of its own.

    So the kernel counts its threads alone. Returns False, and changes nothing, where the kernel or
    a container does not allow namespaces.
    """
    if _libc.unshare(_NEW_USER | _NEW_NAME) != 0:
        return False
    _libc.sethostname(b"program", 7)  # AppArmor may refuse it, which does no harm
    return True


def own_files(library: str, without: Iterable[str], others: Iterable[str]) -> None:
    """Gives this process and its children a host name and a root folder of their own.

    The root contains only the folder ``library``, in which the folders ``without`` are empty, and
    the files and folders ``others``. Raises OSError where the kernel or a container does not allow
    it.
    """
    user = os.getuid()
    group = os.getgid()
    _check(_libc.unshare(_NEW_FILES | _NEW_NAME | (_NEW_USER if user else 0)))
    _libc.sethostname(b"program", 7)
    if user:
        for name, line in (
            ("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1"),
        ):  # fmt: skip
            with open(f"/proc/self/{name}", "w") as file:
                file.write(line)
    _mount("none", "/", "", _BELOW | _PRIVATE)
    new = "/proc"  # nothing in it is needed any more
    _mount("tmpfs", new, "tmpfs", _NO_SUID_OR_DEVICES, "mode=755,size=1m")
    _show(library, new)
    for path in without:
        _mount("tmpfs", new + path, "tmpfs", _NO_SUID_OR_DEVICES, "mode=755,size=1m")
    for path in sorted(others, key=len):  # folders before their contents
        _show(path, new)
    os.chdir(new)
    _check(_libc.syscall(_PIVOT_ROOT[platform.machine()], b".", b"."))
    _check(_libc.umount2(b".", _DETACH))
    os.chdir("/")


def _show(path: str, root: str) -> None:
    """Makes a file or folder appear under another root, if it exists and is not there yet."""
    place = root + path
    if os.path.exists(place) or not os.path.exists(path):
        return
    if os.path.isdir(path):
        os.makedirs(place, 0o755)
    else:
        os.makedirs(os.path.dirname(place), 0o755, exist_ok=True)
        os.close(os.open(place, os.O_CREAT | os.O_EXCL, 0o644))
    _mount(path, place, "", _BIND | _BELOW)


def _mount(what: str, where: str, kind: str, flags: int, options: str = "") -> None:
    words = (word.encode() for word in (what, where, kind))
    _check(_libc.mount(*words, ctypes.c_ulong(flags), options.encode()))


def computing() -> bytes:
    """Returns a filter for ``deny_calls``. It fits any process, so that it is made only once."""
    return filter_for(platform.machine(), _ITSELF)


def own(filter: bytes, pid: int) -> bytes:
    """Returns the filter of ``computing`` for one process."""
    return filter.replace(struct.pack("I", _ITSELF), struct.pack("I", pid))


def deny_calls(filter: bytes) -> None:
    """Allows this process only to compute, to read, to write open files and to have threads.

    It can start no process, use no network, write or change no other file, and send no signal to
    other processes. Raises OSError.
    """
    code = own(filter, os.getpid())
    _check(_libc.prctl(_SECCOMP, _FILTER, ctypes.byref(_Program(len(code) // 8, code)), 0, 0))


def reading(paths: Iterable[str]) -> int:
    """Returns the descriptor of a ruleset for ``deny_files``, by which these paths may be read.

    Everything below a folder may be read, too.
    """
    version = landlock_version()
    rights = (1 << _FILE_RIGHTS.get(version, 16)) - 1
    network = 3 * (version >= 4)
    scopes = 3 * (version >= 6)
    handled = struct.pack("QQQ", rights, network, scopes)[: 8 if version < 4 else 16 if version < 6 else 24]
    ruleset = _check(_libc.syscall(_RESTRICT[0], handled, len(handled), 0))
    for path in paths:
        try:
            opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        allowed = _READ_FILE | (_READ_FOLDER if os.path.isdir(path) else 0)
        rule = _Reads(allowed, opened)
        try:
            _check(_libc.syscall(_RESTRICT[1], ruleset, 1, ctypes.byref(rule), 0))
        finally:
            os.close(opened)
    return ruleset


def deny_files(ruleset: int) -> None:
    """Allows this process and its children to open only what the ruleset names. Raises OSError."""
    _check(_libc.syscall(_RESTRICT[2], ruleset, 0))


def _check(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


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
