"""Keeps the files that a run reads in its folder, so that the run can be moved, and knows them by content.

Each text in the config's task, tokenizer and models that is the absolute path of a file or folder counts:
problem files, levels, prompts, the folder of a model. Weights are not kept: checkpoints hold them.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from atgrpo_jax.common.buckets import is_url
from atgrpo_jax.common.copies import local_file, local_folder
from atgrpo_jax.common.errors import RunError, UserError
from atgrpo_jax.common.files import Place, is_file, make_folder, read_file, write_atomically
from atgrpo_jax.common.progress import say

FOLDER = "kept"  # of a run folder
CONTENTS = "contents.json"  # the digest of each kept file
ABOUT = ".kept.json"  # in a folder that was kept: where it was, and the digest of what it held
LARGE = 256 << 20  # bytes; a larger file stays where it is
WHOLE = 64 << 20  # bytes; of a larger file in a folder only the beginning counts
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack")
_BEGINNING = 1 << 16  # bytes
_FIELDS = ("task", "tokenizer", "pretrained")  # of an Experiment


def paths_of(experiment: Any) -> list[str]:
    """Returns the texts of a config that name a file or folder, each once, in order."""
    texts = (text for field in _FIELDS for text in _texts(getattr(experiment, field)))
    return [text for text in dict.fromkeys(texts) if _digest(text) is not None]


def by_content(value: Any) -> Any:
    """Returns plain values in which the digest of the content stands in place of each path."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: by_content(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return type(value), fields
    if isinstance(value, dict):
        return {key: by_content(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(by_content, value))
    return (_digest(value) or value) if isinstance(value, str) else value


def differences(name: str, ours: Any, theirs: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yields the name, our value and their value of every field in which two values differ.

    Paths are equal if what is there has the same content. ``name`` is what to call the values if they
    are not dataclasses.
    """
    if type(ours) is type(theirs) and dataclasses.is_dataclass(ours):
        for field in dataclasses.fields(ours):
            inner = f"{type(ours).__name__}.{field.name}"
            yield from differences(inner, getattr(ours, field.name), getattr(theirs, field.name))
    elif ours != theirs and by_content(ours) != by_content(theirs):
        yield name, ours, theirs


def represented(part: Any, experiment: Any) -> str:
    """Returns the ``repr`` of a config or of a part of it, with digests of contents in place of its paths."""
    text = repr(part)
    for path in sorted(paths_of(experiment), key=len, reverse=True):  # one may begin like another
        text = text.replace(repr(path), repr(_digest(path)))
    return text


def weights_digest(experiment: Any) -> str:
    """Returns a digest of all weights in the model folders of a config. It reads them whole."""
    digest = hashlib.sha256()
    folders = [_here(came_from(text)) for text in _texts(experiment.pretrained) if _digest(text) is not None]
    for file in (file for folder in folders for file in _files(folder) if file.suffix in _WEIGHTS):
        stat = file.stat()
        digest.update(f"{file.name} {_hashed(file, stat.st_mtime_ns, stat.st_size)}\n".encode())
    return digest.hexdigest()


def keep(experiment: Any, folder: Place) -> Any:
    """Copies what the run reads into ``folder``. Returns the same config, which reads the copies.

    A file of more than ``LARGE`` bytes is left where it is, and a line says so.
    """
    copies: dict[str, str] = {}
    contents: dict[str, str] = {}
    names = {CONTENTS}
    for text in paths_of(experiment):
        name = _free(Path(text).name, names)
        here = _here(text)
        if here.is_dir():
            about = {"from": text, "digest": _folder_digest(here)}
            for file in filter(_counts_whole, _files(here)):
                contents[f"{name}/{file.name}"] = _copy(file, folder / name)
            write_atomically(folder / name / ABOUT, json.dumps(about).encode())
        elif here.stat().st_size > LARGE:
            say(f"{text} is too large to be kept in the run folder; a copy of the run needs it, too")
            continue
        else:
            contents[name] = _copy(here, folder, name)
        copies[text] = str(folder / name)
    if contents:
        write_atomically(folder / CONTENTS, (json.dumps(contents, indent=2) + "\n").encode())
    fields = {name: getattr(experiment, name) for name in _FIELDS}
    changed = {name: _replaced(value, lambda text: copies.get(text, text)) for name, value in fields.items()}
    return dataclasses.replace(experiment, **changed)


def came_from(folder: str) -> str:
    """Returns the folder that a kept one was copied from; any other one as it is."""
    about = Path(folder) / ABOUT
    return came_from(json.loads(about.read_bytes())["from"]) if about.is_file() else folder


def digests(folder: Place) -> dict[str, str]:
    """Returns the digest of each file or folder that is kept in ``folder``, by its name there."""
    if not is_file(folder / CONTENTS):
        return {}
    found = {}
    for name, digest in json.loads(read_file(folder / CONTENTS)).items():
        top, _, inner = name.partition("/")
        found[top] = json.loads(read_file(folder / top / ABOUT))["digest"] if inner else digest
    return found


def check_kept(folder: Place) -> None:
    """Raises RunError that names the first kept file that is missing or has changed."""
    if not is_file(folder / CONTENTS):
        return
    for name, digest in json.loads(read_file(folder / CONTENTS)).items():
        path = folder / name
        if not is_file(path) or hashlib.sha256(read_file(path)).hexdigest() != digest:
            raise RunError(f"{path} is missing or has changed since the run began; put it back")


def _copy(file: Path, folder: Place, name: str = "") -> str:
    """Copies a file into a folder. Returns the digest of its content."""
    make_folder(folder)
    content = file.read_bytes()
    write_atomically(folder / (name or file.name), content)
    return hashlib.sha256(content).hexdigest()


def _free(name: str, taken: set[str]) -> str:
    numbered = (name if number == 1 else f"{number}_{name}" for number in range(1, len(taken) + 2))
    found = next(one for one in numbered if one not in taken)
    taken.add(found)
    return found


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            if field.init:
                yield from _texts(getattr(value, field.name))


def _replaced(value: Any, change: Callable[[str], str]) -> Any:
    """Returns a value in which ``change`` was made to every text that a path may be."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {key: _replaced(item, change) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_replaced(item, change) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        before = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
        after = {name: _replaced(own, change) for name, own in before.items()}
        changed = {name: own for name, own in after.items() if own != before[name]}
        return dataclasses.replace(value, **changed) if changed else value
    return value


def _digest(text: str) -> str | None:
    """Returns the digest of the content of a path; None if the text is no path, or nothing is there."""
    try:
        if is_url(text):
            return _url_digest(text)
        path = Path(text)
        if not path.is_absolute() or path == path.parent or not path.exists():
            return None
    except (OSError, ValueError):  # too long for a name, or a zero byte in it
        return None
    return _folder_digest(path) if path.is_dir() else _file_digest(path)


@functools.cache
def _url_digest(url: str) -> str | None:
    try:
        here = _here(url)
    except (UserError, ValueError):
        return None
    return _folder_digest(here) if here.is_dir() else _file_digest(here)


def _here(text: str) -> Path:
    """Returns a path, or for a URL its copy on this disk. Raises RunError or ValueError if there is none."""
    if not is_url(text):
        return Path(text)
    try:
        return local_file(text)
    except RunError:
        return local_folder(text)


def _file_digest(path: Path) -> str:
    stat = path.stat()
    return "content " + _hashed(path, stat.st_mtime_ns, stat.st_size)[:32]


def _folder_digest(folder: Path) -> str:
    """Returns a digest of the files right in a folder. Of weights and large files little is read.

    A folder that was kept has no weights. Its digest is that of what it was made of.
    """
    if (folder / ABOUT).is_file():
        return json.loads((folder / ABOUT).read_bytes())["digest"]
    digest = hashlib.sha256()
    for file in _files(folder):
        stat = file.stat()
        most = None if _counts_whole(file) else _BEGINNING
        content = _hashed(file, stat.st_mtime_ns, stat.st_size, most)
        digest.update(f"{file.name} {stat.st_size} {content}\n".encode())
    return f"content {digest.hexdigest()[:32]}"


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.is_file() and file.name[0] != ".")


def _counts_whole(file: Path) -> bool:
    return file.suffix not in _WEIGHTS and file.stat().st_size <= WHOLE


@functools.lru_cache(maxsize=1024)
def _hashed(path: Path, mtime_ns: int, size: int, most: int | None = None) -> str:
    """Returns the SHA-256 of a file, or of its beginning. The times tell contents apart in the cache."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        if most is not None:
            digest.update(file.read(most))
        else:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
