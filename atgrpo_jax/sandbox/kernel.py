"""Gives up rights of a process for good: system calls (seccomp) and files (Landlock) on Linux.

It uses ctypes. Neither needs a library, a privilege or a container's permission. sandbox/worker.py
uses it in the process that is about to run a program.
"""

import ctypes
import os
import platform
import struct
from collections.abc import Iterable

from atgrpo_jax.sandbox import system_calls

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


def deny_calls(filter: bytes) -> None:
    """Allows this process only to compute, to read, to write open files and to have threads.

    It can start no process, use no network, write or change no other file, and send no signal to
    other processes. Raises OSError.
    """
    code = system_calls.own(filter, os.getpid())
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
