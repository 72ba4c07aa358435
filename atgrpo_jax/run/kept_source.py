"""Keeps the source of parts that were defined in a notebook or a script, so that others can import it.

The class of a task that is defined in a cell belongs to ``__main__``, and no other process has that
``__main__``. So the class is written into the run folder, with all that it uses.
"""

import ast
import builtins
import dataclasses
import importlib
import linecache
import symtable
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from atgrpo_jax.common.errors import ConfigError
from atgrpo_jax.common.files import write_atomically
from atgrpo_jax.common.types import hash_bytes

_MAIN = "__main__"
FOLDER = "code"  # of a run folder


def kept(part: Any, folder: Path) -> Any:
    """Returns an equal part whose class is in a file of ``folder``, which is made, and importable.

    A part whose class any process can import is returned as it is. Raises ConfigError if the class
    uses something that cannot be written down.
    """
    if type(part).__module__ != _MAIN:
        return part
    source = _Source(vars(sys.modules[_MAIN])).of(type(part).__name__)
    name = f"kept_{hash_bytes(source).hex()[:8]}"
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / f"{name}.py", source.encode())
    make_importable(folder)
    made = getattr(importlib.import_module(name), type(part).__name__)
    return made(**{f.name: getattr(part, f.name) for f in dataclasses.fields(part) if f.init})


def make_importable(folder: Path) -> None:
    """Lets this process import what ``kept`` has written into ``folder``, if there is any."""
    if folder.is_dir() and str(folder) not in sys.path:
        sys.path.append(str(folder))
        importlib.invalidate_caches()


class _Source:
    """Writes definitions of ``__main__`` down, each after those that it uses."""

    def __init__(self, main: dict[str, Any]):
        self._main = main
        self._lines: dict[str, str] = {}  # by the name that they define

    def of(self, name: str) -> str:
        self._add(name)
        return '"""Kept from the notebook or script that began this run."""\n\n' + "\n\n".join(
            self._lines.values()
        )

    def _add(self, name: str, user: str = "") -> None:
        if name in self._lines or name not in self._main:
            return
        value = self._main[name]
        if isinstance(value, types.ModuleType):
            self._lines[name] = f"import {value.__name__} as {name}\n"
        elif isinstance(value, (type, types.FunctionType)) and value.__module__ == _MAIN:
            node = self._definition(name, value)
            for used in _names(node):
                if used != name:
                    self._add(used, user=name)
            self._lines[name] = ast.unparse(node) + "\n"
        else:
            self._lines[name] = _import_of(name, value) or f"{name} = {_literal(name, value, user)}\n"

    def _definition(self, name: str, value: Any) -> ast.stmt:
        """Returns the newest definition of a class or function."""
        for file in _files(value):
            tree = ast.parse("".join(linecache.getlines(file)))
            for node in reversed(tree.body):
                if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name == name:
                    return node
        raise ConfigError(f"the source of {name} is not known; define it in a file and import it")


def _files(value: Any) -> Iterator[str]:
    """Yields the files and cells that may define a class or function, the likeliest first."""
    functions = [value] if isinstance(value, types.FunctionType) else vars(value).values()
    for function in functions:
        if isinstance(function, types.FunctionType) and linecache.getlines(function.__code__.co_filename):
            yield function.__code__.co_filename
    script = getattr(sys.modules[_MAIN], "__file__", None)
    if script:
        yield script
    # The cells of a notebook, newest first, for a class without functions of its own.
    for file in reversed(list(linecache.cache)):
        if "ipykernel" in file or file.startswith("<ipython"):
            yield file


def _names(node: ast.AST) -> list[str]:
    """Returns the global names that a definition reads and that are not built in."""
    found: dict[str, None] = {}
    tables = [symtable.symtable(ast.unparse(node), _MAIN, "exec")]
    while tables:
        table = tables.pop(0)
        tables += table.get_children()
        for symbol in table.get_symbols():
            if symbol.is_referenced() and (symbol.is_global() or table.get_type() == "module"):
                found[symbol.get_name()] = None
    return [name for name in found if not hasattr(builtins, name)]


def _import_of(name: str, value: Any) -> str | None:
    """Returns the line that imports a class or function from its module; None if there is none."""
    home = getattr(value, "__module__", None)
    own = getattr(value, "__name__", None)
    if home is None or own is None or getattr(sys.modules.get(home), own, None) is not value:
        return None
    return f"from {home} import {own} as {name}\n"


def _literal(name: str, value: Any, user: str) -> str:
    text = repr(value)
    try:
        plain = ast.literal_eval(text) == value
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        plain = False
    if not plain:
        raise ConfigError(
            f"{user} uses {name}, a {type(value).__name__} of this notebook or script, which cannot be "
            f"kept in the run folder; define {user} in a file and import it"
        )
    return text
