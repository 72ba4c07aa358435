"""Holds code that is run before an answer, as the harnesses of known problem sets do."""

import functools
import json
from pathlib import Path
from typing import Any

from atgrpo_jax.tasks.code.fields import characters, shown
from atgrpo_jax.tasks.code.python_source import parsed
from atgrpo_jax.tasks.data import note_read

# Names that every answer may use: those that the harnesses of LiveCodeBench and APPS import, except
# names that would hide one of Python's builtins.
_STARRED = (
    "typing", "string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random",
    "statistics", "itertools", "functools", "operator", "io", "sys", "json",
)  # fmt: skip
_MODULES = (*_STARRED[1:], "time", "fractions", "builtins")
PREAMBLE = (
    "".join(f"from {name} import *\n" for name in _STARRED)
    + f"import {', '.join(_MODULES)}\n"
    + "for _name in [_name for _name in dir(builtins) if _name[0] != '_']:\n    globals().pop(_name, None)\n"
)
# What these harnesses do besides: they allow deep recursion (as deep as LiveCodeBench does), and a
# function outside of any class counts as a method of ``Solution``.
HARNESS = (
    f"{PREAMBLE}sys.setrecursionlimit(50000)\n"
    "class Solution:\n    def __getattr__(self, name): return globals()[name]\n"
)


@functools.lru_cache
def _preambles(file: Path) -> Any:
    if not file.is_file():
        raise ValueError(f"preamble: no file {file}, and no field 'before'")
    try:
        note_read(str(file), file)
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"preamble: {file} cannot be read ({error})") from error


def preamble(path: str, key: Any) -> str:
    """Returns the preamble ``key``. The preambles of ``NAME_SPLIT.jsonl.gz`` are in
    ``NAME_preamble_SPLIT.json`` in the same folder."""
    file = Path(path).expanduser()
    name, _, split = file.name.partition(".")[0].rpartition("_")
    beside = file.with_name(f"{name}_preamble_{split}.json") if file.name else file
    known = _preambles(beside)
    if not isinstance(key, str) or not isinstance(known, dict) or key not in known:
        raise ValueError(f"preamble = {shown(key)}: {beside} has none of that name")
    parsed(f"preamble {key!r} of {beside}", characters(f"preamble {key!r} of {beside}", known[key]))
    return known[key]
