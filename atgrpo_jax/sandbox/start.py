"""Makes the settings, the code, the environment and the command with which a worker is started."""

import dataclasses
import itertools
import os
import shutil
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from atgrpo_jax.sandbox import kernel, packages
from atgrpo_jax.sandbox.levels import Level

# The folders of shared libraries in Linux distributions, and files that Python reads beside them.
_SYSTEM = (
    "/lib64", "/usr/lib64", "/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib/aarch64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu", "/etc/ld.so.cache", "/usr/share/zoneinfo", "/dev/null", "/dev/urandom",
)  # fmt: skip
# The modules of a worker. Each comes after those that it imports.
MODULES = ("system_calls", "kernel", "plain_data", "program", "worker")
PACKAGES = ("site-packages", "dist-packages")
ENVIRONMENT = {
    "PYTHONHASHSEED": "0",
    "PYTHONUTF8": "1",
    "LANG": "C.UTF-8",
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "1",
}
# The code with which a worker starts. It receives the source of its modules, under names that do
# not say where the files are, because a program can search the whole memory of its process.
BOOT = """
import json, os, socket, sys, types
with socket.socket(fileno=os.dup(0)) as link:
    _, (code, told), _, _ = socket.recv_fds(link, 1, 2)
with os.fdopen(code, encoding="utf-8") as sources:
    sources = json.load(sources)
package = sys.modules[sources["name"]] = types.ModuleType("package")
for name, text in sources["files"]:
    module = sys.modules[name] = types.ModuleType(name)
    setattr(package, name, module)
    exec(compile(text, name, "exec"), module.__dict__)
main = module.main
for name in (*dict(sources["files"]), sources["name"]):
    del sys.modules[name]
del json, os, socket, types, link, _, code, sources, package, name, text, module
main(told)()
"""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Holds what a worker is started with."""

    level: Level
    executable: str  # the Python that runs it
    told: dict[str, Any]  # what the worker itself is told
    readable: list[str]  # paths that it reads, besides Python's library


def settings(
    limits: Mapping[str, float], names: tuple[str, ...], level: Level, warm_up: str, apart: bool
) -> Settings:
    """Returns the settings of a worker.

    Args:
      limits: the limits of each program: wall and cpu in seconds, memory and output in bytes,
        open_files, threads.
      names: the packages that programs may import.
      warm_up: a trusted program that the worker runs first.
      apart: whether the worker gets namespaces of its own at a level that has none, and, if the
        trainer is root, runs as a user that nobody else is.
    """
    executable = os.path.realpath(sys._base_executable)  # type: ignore[attr-defined]
    stdlib = os.path.realpath(sysconfig.get_path("stdlib"))  # programs cannot follow links
    libraries = Path(sys.base_prefix, "lib").glob("libpython*")
    site = packages.paths(names)
    others = [*_SYSTEM, *map(str, libraries), executable, *map(str, site)]
    own = [str(path) for path in sorted(Path(stdlib).iterdir()) if path.name not in PACKAGES]
    masked = [f"{stdlib}/{name}" for name in PACKAGES if Path(stdlib, name).is_dir()]
    told = {
        "path": [stdlib, f"{stdlib}/lib-dynload", *sorted({str(path.parent) for path in site})],
        "packages": names,
        "warm_up": warm_up,
        "readable": [*own, *others],
        "user": nobody() if apart and os.getuid() == 0 else 0,
        "root": (stdlib, masked, others) if apart and level == "kernel" else None,
        "files": level != "limits" and kernel.landlock_version() > 0,
        "calls": level != "limits",
        "limits": limits,
    }
    return Settings(level, executable, told, others)


def command(settings: Settings) -> list[str]:
    """Returns the command that starts a worker."""
    words = [settings.executable, "-s", "-S", "-B", "-c", BOOT]
    return (
        [*bubblewrap(settings.told, settings.readable), *words] if settings.level == "namespaces" else words
    )


def sources() -> dict[str, Any]:
    """Returns the source of a worker's modules, and the package by which they import each other."""
    here = Path(kernel.__file__).parent
    texts = [(name, (here / f"{name}.py").read_text("utf-8")) for name in MODULES]
    return {"name": "atgrpo_jax.sandbox", "files": texts}


_users = itertools.count()


def nobody() -> int:
    """Returns the id of a user that nobody else is, not even another worker of this machine.

    The kernel counts threads by user.
    """
    return 0x60000000 + (os.getpid() << 7) + next(_users) % 128  # process ids are below 2**22


def bubblewrap(told: dict[str, Any], readable: list[str]) -> list[str]:
    """Returns the command that is put in front of a worker's command.

    It gives the worker processes, network and files of its own. The files can only be read.
    """
    found = shutil.which("bwrap")
    assert found is not None, "the level was tried without it"
    stdlib = told["path"][0]
    words = [found, "--unshare-all", "--as-pid-1", "--cap-drop", "ALL", "--proc", "/proc", "--dev", "/dev"]
    if told["user"]:  # the worker changes to it, which it could not do in a user namespace
        words[1:2] = ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts"]
        words += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
        above = {str(parent) for path in (stdlib, *readable) for parent in Path(path).parents}
        for path in sorted(above - {"/"}, key=len):  # if bwrap made them, only root could read them
            words += ["--perms", "0755", "--dir", path]
    for path in (stdlib, *readable):
        if not path.startswith("/dev/"):
            words += ["--ro-bind-try", path, path]
    for name in PACKAGES:
        if Path(stdlib, name).is_dir():
            words += ["--tmpfs", f"{stdlib}/{name}"]
    for name, value in ENVIRONMENT.items():
        words += ["--setenv", name, value]
    return [*words, "--hostname", "program", "--chdir", "/", "--"]
