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

from atgrpo_jax.common.copies import copied
from atgrpo_jax.common.errors import ConfigError
from atgrpo_jax.common.files import Place, make_folder, names_in, write_atomically
from atgrpo_jax.common.literals import literal
from atgrpo_jax.common.types import hash_bytes

FOLDER = "code"  # of a run folder
_MAIN = "__main__"
_KEPT = "kept_"  # a module that is named so was written here
_LATER = "from __future__ import annotations\n"


def kept(part: Any, folder: Place) -> Any:
    """Returns a config with the same values, all of whose parts any process can import.

    Classes of ``__main__`` are written into ``folder``. A config without such classes is returned
    as it is. Raises ConfigError if a class uses something that cannot be written down.
    """
    values = {f.name: getattr(part, f.name) for f in dataclasses.fields(part) if f.init}
    inner = {name: _kept_value(value, folder) for name, value in values.items()}
    if type(part).__module__ == _MAIN:
        return _kept_class(type(part), folder)(**inner)
    changed = {name: value for name, value in inner.items() if value is not values[name]}
    return dataclasses.replace(part, **changed) if changed else part


def carry(part: Any, folder: Place) -> None:
    """Copies what ``kept`` wrote for another run into ``folder``, if a config uses it."""
    for value in (getattr(part, f.name) for f in dataclasses.fields(part)):
        for inner in value.values() if isinstance(value, dict) else (value,):
            if dataclasses.is_dataclass(inner) and not isinstance(inner, type):
                carry(inner, folder)
    module = sys.modules[type(part).__module__]
    name = f"{module.__name__}.py"
    if module.__name__.startswith(_KEPT) and module.__file__ and name not in names_in(folder):
        make_folder(folder)
        write_atomically(folder / name, Path(module.__file__).read_bytes())


def _kept_value(value: Any, folder: Place) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return kept(value, folder)
    if not isinstance(value, dict):
        return value
    inner = {key: _kept_value(item, folder) for key, item in value.items()}
    return inner if any(inner[key] is not value[key] for key in value) else value


def _kept_class(cls: type, folder: Place) -> type:
    source = _Source(vars(sys.modules[_MAIN])).of(cls)
    name = f"{_KEPT}{hash_bytes(source).hex()[:8]}"
    make_folder(folder)
    write_atomically(folder / f"{name}.py", source.encode())
    make_importable(folder)
    return getattr(importlib.import_module(name), cls.__name__)


def make_importable(folder: Place) -> None:
    """Lets this process import what ``kept`` has written into ``folder``, if there is any."""
    if not names_in(folder):
        return
    place = folder.absolute() if isinstance(folder, Path) else copied(folder)
    if str(place) not in sys.path:
        sys.path.append(str(place))
    importlib.invalidate_caches()


class _Source:
    """Writes definitions of ``__main__`` down, each after those that it uses."""

    def __init__(self, main: dict[str, Any]):
        self._main = main
        self._lines: dict[str, str] = {}  # by the name that they define
        self._begun: set[str] = set()  # two functions may use each other
        self._later = False  # whether a definition leaves its annotations unevaluated

    def of(self, cls: type) -> str:
        """Returns the text of a module that defines a class."""
        if self._main.get(cls.__name__) is not cls:
            raise ConfigError(
                f"{cls.__qualname__} is not defined at the top of the notebook or script, so it cannot be "
                "kept in the run folder; move it there, or define it in a file and import it"
            )
        self._add(cls.__name__)
        head = '"""Kept from the notebook or script that began this run."""\n\n'
        return head + "\n\n".join([_LATER] * self._later + list(self._lines.values()))

    def _add(self, name: str, user: str = "") -> None:
        if name in self._begun or name not in self._main:
            return
        self._begun.add(name)
        value = self._main[name]
        if isinstance(value, types.ModuleType):
            self._lines[name] = f"import {value.__name__} as {name}\n"
        elif isinstance(value, (type, types.FunctionType)) and value.__module__ == _MAIN:
            node = self._definition(name, value)
            for used in _names(node):
                self._add(used, user=name)
            self._lines[name] = ast.unparse(node) + "\n"
        else:
            self._lines[name] = _import_of(name, value) or f"{name} = {_plain(name, value, user)}\n"

    def _definition(self, name: str, value: Any) -> ast.stmt:
        """Returns the newest definition of a class or function."""
        for text in self._texts(value):
            try:
                tree = ast.parse(text)
            except SyntaxError:
                continue  # a cell that never ran; the notebook has said so
            for node in reversed(tree.body):
                kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
                if isinstance(node, kinds) and node.name == name:
                    self._later |= any(ast.unparse(other) + "\n" == _LATER for other in tree.body)
                    return node
        raise ConfigError(
            f"the source of {name} is not known; define it in a cell that does not begin with %%, or in a "
            "file and import it"
        )

    def _texts(self, value: Any) -> Iterator[str]:
        """Yields the source of what may define a class or function, the likeliest first."""
        functions = [value] if isinstance(value, types.FunctionType) else vars(value).values()
        for function in functions:
            if isinstance(function, types.FunctionType):
                yield "".join(linecache.getlines(function.__code__.co_filename))
        if script := self._main.get("__file__"):
            yield "".join(linecache.getlines(script))
        # A class without functions of its own: IPython lists the cells in the order in which they ran,
        # and calls their files what it likes.
        yield from reversed(self._main.get("_ih", []))


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


def _plain(name: str, value: Any, user: str) -> str:
    text = literal(value)
    if text is None:
        raise ConfigError(
            f"{user} uses {name}, a {type(value).__name__} of this notebook or script, which cannot be "
            f"kept in the run folder; define {user} in a file and import it"
        )
    return text
