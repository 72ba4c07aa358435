"""Keeps the user's own modules in the run folder: another machine finds them, and a change is noticed."""

import dataclasses
import hashlib
import json
import site
import sys
import sysconfig
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from atgrpo_jax.common.errors import RunError
from atgrpo_jax.common.files import Place, is_file, make_folder, names_in, read_file, write_atomically
from atgrpo_jax.common.progress import say

DIGESTS = "modules.json"  # beside the modules: the digest of each
_OURS = "atgrpo_jax"
_BEFORE = "before_step_"  # folders of modules that have changed since; then a step


def modules_of(experiment: Any) -> dict[str, Path]:
    """Returns the files of all modules that define a part of the config, or that these modules use.

    Modules of this package, of Python and of installed packages are left out.
    """
    found: dict[str, Path] = {}
    waiting = [sys.modules[name] for name in dict.fromkeys(_homes(experiment)) if name in sys.modules]
    while waiting:
        module = waiting.pop()
        if module.__name__ in found or not _is_own(module):
            continue
        found[module.__name__] = Path(str(module.__file__))
        parents = module.__name__.split(".")[:-1]
        waiting += [sys.modules[".".join(parents[: i + 1])] for i in range(len(parents))]
        waiting += _used(module)
    return dict(sorted(found.items()))


def digests(folder: Place) -> dict[str, str]:
    """Returns the digest of each module that is kept in ``folder``, by its name."""
    return json.loads(read_file(folder / DIGESTS)) if is_file(folder / DIGESTS) else {}


def earlier(folder: Place) -> dict[str, str]:
    """Returns the digests of modules that have changed since, by name and the step before which they did."""
    found = {}
    for old in sorted(name for name in names_in(folder) if name.startswith(_BEFORE)):
        for name in digests(folder):
            for file in (f"{name.replace('.', '/')}.py", f"{name.replace('.', '/')}/__init__.py"):
                if is_file(folder / old / file):
                    digest = hashlib.sha256(read_file(folder / old / file)).hexdigest()
                    found[f"{name} before step {old.removeprefix(_BEFORE)}"] = digest
    return found


def settle_code(experiment: Any, folder: Place, done: int, changed: bool) -> None:
    """Keeps the modules of a run in ``folder``, or checks that they are still as they were.

    Args:
      done: the step of the newest checkpoint.
      changed: whether modules may have changed. Then the folder keeps the old ones, too.

    Raises RunError that names the first module that has changed, if it may not.
    """
    files = modules_of(experiment)
    texts = {name: file.read_bytes() for name, file in files.items() if file.parent != folder}
    before = digests(folder)
    now = {name: hashlib.sha256(text).hexdigest() for name, text in texts.items()}
    different = [name for name in now if name in before and before[name] != now[name]]
    if different and not changed:
        raise RunError(
            f"{files[different[0]]} has changed since the run began, which keeps it as "
            f"{folder / _path(different[0], files)}; undo that, or go on with the new one by --changed_code"
        )
    for name in different:
        old = folder / f"{_BEFORE}{done + 1}"
        if is_file(old / _path(name, files)):
            continue  # it made the steps so far; what is kept now has made none
        make_folder((old / _path(name, files)).parent)
        write_atomically(old / _path(name, files), read_file(folder / _path(name, files)))
        say(f"{files[name]} has changed; the one before is kept in {old}")
    if now and now != before:
        for name, text in texts.items():
            make_folder((folder / _path(name, files)).parent)
            write_atomically(folder / _path(name, files), text)
        write_atomically(folder / DIGESTS, (json.dumps(before | now, indent=2) + "\n").encode())


def _path(name: str, files: Mapping[str, Path]) -> str:
    """Returns where a module lies in a folder from which it can be imported."""
    whole = files[name].name == "__init__.py"
    return name.replace(".", "/") + ("/__init__.py" if whole else ".py")


def _homes(value: Any) -> Iterator[str]:
    """Yields the module of every class in a config."""
    if isinstance(value, Mapping):
        for item in value.values():
            yield from _homes(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for base in type(value).__mro__:
            yield base.__module__
        for field in dataclasses.fields(value):
            yield from _homes(getattr(value, field.name))


def _used(module: types.ModuleType) -> list[types.ModuleType]:
    names = set()
    for value in vars(module).values():
        home = value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", None)
        if isinstance(home, str):
            names.add(home)
    return [sys.modules[name] for name in sorted(names) if name in sys.modules]


def _is_own(module: types.ModuleType) -> bool:
    """Returns whether a module is a file of the user's."""
    file = getattr(module, "__file__", None)
    top = module.__name__.partition(".")[0]
    if (
        file is None
        or not file.endswith(".py")
        or top in (_OURS, "__main__")
        or top in sys.stdlib_module_names
    ):
        return False
    return not any(Path(file).is_relative_to(place) for place in _INSTALLED)


_INSTALLED = [
    Path(place)
    for place in {*sysconfig.get_paths().values(), *site.getsitepackages(), site.getusersitepackages()}
    if Path(place).name in ("site-packages", "dist-packages") or place == sysconfig.get_path("stdlib")
]
