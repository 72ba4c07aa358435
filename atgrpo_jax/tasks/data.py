"""Reads problem files: JSON lines, plain or gzipped. See docs/data.md."""

import functools
import gzip
import hashlib
import json
import random
import re
import zlib
from collections.abc import Callable, Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any

from atgrpo_jax.common import copies
from atgrpo_jax.common.copies import local_file
from atgrpo_jax.common.progress import counted, say
from atgrpo_jax.common.types import seed_of
from atgrpo_jax.tasks.splits import SPLITS

# Used by ``words_of``. Signs that are written in several ways are made one; signs without width are
# dropped.
_SAME: dict[int, str | None] = {ord("−"): "-", ord("–"): "-"}
_SAME |= {ord(one): "'" for one in "‘’"} | {ord(one): '"' for one in "“”"}
_SAME |= {ord(one): None for one in "\u200b\u200c\u200d\u2060\ufeff\u00ad"}
# LaTeX that only changes the looks: spaces, sizes, the signs around mathematics; then braces around
# a power or index of one symbol.
_SETTING = re.compile(r"\\[,;:!]|\\(?:left|right|quad|displaystyle)(?![a-zA-Z])|\$|\\[()\[\]]")
_LONE = re.compile(r"(?<=[\^_])\{(\w|\\[a-zA-Z]+)\}")
# Punctuation of prose: commas after words, ends of sentences.
_MARKS = re.compile(r"(?<=[a-zA-Z][a-zA-Z])[,;:](?=\s|$)|[.?](?=[\s\"')]|$)")
_SIGNS = re.compile(r"\\[a-zA-Z]+|\w+|[^\w\s]")

Files = tuple[tuple[str, tuple[str, ...]], ...]  # (split, its paths) for each split
# Digests of the files that this process has read, by the names that tasks gave them. The hosts of a run
# compare them.
FILES_READ: dict[str, str] = {}


def absolute(given: Mapping[str, str | tuple[str, ...]]) -> dict[str, str | tuple[str, ...]]:
    """Returns the same files with absolute paths, so that they are found from any directory."""
    one = copies.absolute
    return {s: one(paths) if isinstance(paths, str) else tuple(map(one, paths)) for s, paths in given.items()}


def files_of(given: Mapping[str, str | tuple[str, ...]]) -> Files:
    """Returns the files of each split as tuples. Raises ValueError for an unknown split."""
    unknown = sorted(set(given) - set(SPLITS))
    if unknown:
        raise ValueError(f"files of split {unknown[0]!r}: expected {', '.join(SPLITS)}")
    lists = {split: (paths,) if isinstance(paths, str) else tuple(paths) for split, paths in given.items()}
    return tuple(lists.items())


@functools.lru_cache
def rows_of(
    files: Files, split: str, read: Callable[[str], tuple[Any, ...]], key: Callable[[Any], Hashable]
) -> tuple[Any, ...]:
    """Returns the problems that ``read`` finds in the files of a split, each once.

    Problems that a later split has, too, are left out, so that no test problem is trained on. Two
    problems count as the same if their ``key`` is equal. Raises ValueError for a split that has no
    files or in which no problem is left.
    """
    by_split = dict(files)
    if split not in by_split:
        raise ValueError(f"no files for split {split!r}, only for {', '.join(by_split) or 'none'}")
    later = [by_split.get(name, ()) for name in SPLITS[SPLITS.index(split) + 1 :]]
    kept_back = {key(row) for paths in later for path in paths for row in read(path)}
    rows = [row for path in by_split[split] for row in read(path)]
    distinct = {key(row): row for row in reversed(rows)}
    own = [row for name, row in reversed(distinct.items()) if name not in kept_back]
    if len(own) < len(rows):
        again = len(rows) - len(distinct)
        shared = len(distinct) - len(own)
        say(
            f"{split}: {counted(len(rows), 'problem')}, without {shared} for being in a later split and "
            f"{again} for coming twice"
        )
    if not own:
        raise ValueError(f"no problem is left in split {split!r}")
    return tuple(own)


def pick(rows: tuple[Any, ...], seed: int, split: str, index: int) -> Any:
    """Returns the row at ``index`` of a split.

    "train" never ends: each pass over its rows has a new random order. The other splits have the
    order of the file, and raise IndexError past their end.
    """
    if split != "train":
        return rows[index]
    round_, place = divmod(index, len(rows))
    return rows[_order(len(rows), seed, round_)[place]]


@functools.lru_cache(maxsize=8)
def _order(count: int, seed: int, round_: int) -> list[int]:
    return random.Random(seed_of("problems", seed, round_)).sample(range(count), count)


def words_of(text: str) -> str:
    """Returns a text without its typesetting; two texts are the same if this is equal.

    It ignores spaces, a capital letter at the beginning of a word, kinds of quotes, dollar signs
    and the like, and the punctuation of prose. Every other sign counts, and so does the case of
    single letters, abbreviations and LaTeX's names.
    """
    text = _LONE.sub(r"\1", _SETTING.sub(" ", text.translate(_SAME)))
    return " ".join(_plain(found) for found in _SIGNS.findall(_MARKS.sub(" ", text)))


def _plain(sign: str) -> str:
    return sign.lower() if len(sign) > 1 and sign[0] != "\\" and sign[1:].islower() else sign


def read_rows(path: str, fields: Mapping[str, Any]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (line number from 1, row); each row has at least ``fields``, of those types.

    Raises ValueError that names the file, the line and the field.
    """
    file = local_file(path)
    encoding = "utf-8-sig"  # drops the mark (BOM) that some editors put at the start
    if not file.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        note_read(path, file)
        with (gzip.open if file.suffix == ".gz" else open)(
            file, "rt", encoding=encoding, newline="\n"
        ) as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield number, _row(line, f"{path}:{number}", fields)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from error


def note_read(name: str, file: Path) -> None:
    """Notes what a file of problems, or one that belongs to it, has in it now."""
    with file.open("rb") as opened:
        FILES_READ[name] = hashlib.file_digest(opened, "sha256").hexdigest()[:12]


def _row(line: str, place: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    try:
        row = json.loads(line, object_pairs_hook=_once)
        if "\\u" in line:  # a lone surrogate would stop the run later, where it is printed
            json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{place}: half of a character ({error.object[error.start]!a}) stands alone"
        ) from error
    except (ValueError, RecursionError) as error:  # also an integer with too many digits for Python
        raise ValueError(f"{place}: no JSON ({error})") from error
    if not isinstance(row, dict):
        raise ValueError(f"{place}: no JSON object")
    for name, kind in fields.items():
        if name not in row:
            raise ValueError(f"{place}: no field {name!r}")
        if not isinstance(row[name], kind) or (kind is int and isinstance(row[name], bool)):
            raise ValueError(f"{place}: {name} = {str(row[name])[:60]!r} is no {kind.__name__}")
    return row


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns the pairs as a dict. Raises ValueError for a field that is given twice."""
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"field {twice!r} is given twice")
    return made
