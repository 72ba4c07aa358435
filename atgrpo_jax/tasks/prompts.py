"""Prompts as template files: what each role of a task is shown, to read and to change.

A folder holds ``ROLE.txt`` for each role, in Jinja's language; files that begin with "_" are for others to
include. Those that ship are in ``tasks/templates``.
"""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import jinja2.sandbox

from atgrpo_jax.types import Message, hash_bytes

SHIPPED = Path(__file__).parent / "templates"


def render(folder: str, role: str, values: Mapping[str, Any]) -> list[Message]:
    """What ``role`` is shown: one message of the user's. Raises ValueError for a name without a value."""
    try:
        content = _templates(folder)[role].render(values, role=role)
    except jinja2.UndefinedError as error:
        raise ValueError(f"{_folder(folder) / role}.txt: {error.message}") from error
    return [{"role": "user", "content": content.strip("\n")}]


def check(folder: str, roles: Sequence[str]) -> str:
    """A digest of the folder's templates, which names their content.

    Raises ValueError if there is no such folder, if it lacks a role's file, or if a file is no template.
    """
    missing = sorted(set(roles) - set(_templates(folder)))
    if missing:
        raise ValueError(f"no template {missing[0]}.txt in {_folder(folder)}")
    texts = [f"{path.name}\n{path.read_text(encoding='utf-8')}" for path in _files(folder)]
    return hash_bytes("\n".join(texts)).hex()


def _folder(folder: str) -> Path:
    """One of the user's, or one of ours."""
    own = Path(folder).expanduser()
    return own if own.is_dir() else SHIPPED / folder


def _files(folder: str) -> list[Path]:
    return sorted(_folder(folder).glob("*.txt"))


@functools.lru_cache
def _templates(folder: str) -> dict[str, jinja2.Template]:
    files = _files(folder)
    if not files:
        raise ValueError(f"no prompts in {folder!r}: neither a folder here nor one in {SHIPPED}")
    language = jinja2.sandbox.ImmutableSandboxedEnvironment(
        loader=jinja2.FileSystemLoader(_folder(folder)),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    try:
        return {path.stem: language.get_template(path.name) for path in files if path.name[0] != "_"}
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(f"{error.filename}, line {error.lineno}: {error.message}") from error
