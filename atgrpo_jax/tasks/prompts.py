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

from atgrpo_jax.common.checks import require
from atgrpo_jax.common.types import Message, hash_bytes

SHIPPED = Path(__file__).parent / "templates"


class TemplateError(ValueError):
    """There is no such folder, or a file in it is no template or names something that has no value."""


def render(folder: str, role: str, values: Mapping[str, Any]) -> list[Message]:
    """What ``role`` is shown: one message of the user's. Raises TemplateError."""
    try:
        content = _templates(folder)[role].render(values, role=role)
    except jinja2.UndefinedError as error:
        raise TemplateError(f"{_folder(folder) / role}.txt: {error.message}") from error
    return [{"role": "user", "content": content.strip("\n")}]


def settle(task: Any, names: Sequence[str], split: str = "train") -> None:
    """For a task's ``__post_init__``: there are templates of those names in the folder ``task.prompts``, and
    they show every role the first instance of a split. ``prompts`` becomes absolute if it is a folder of the
    user's, and ``prompts_digest`` says what its files hold.

    Raises ValueError naming the field if that is not so, and whatever ``task.instance`` raises.
    """
    first = task.initial(task.instance(split, 0))
    if _own(task.prompts).is_dir():
        object.__setattr__(task, "prompts", str(_own(task.prompts).absolute()))
    try:
        missing = sorted(set(names) - set(_templates(task.prompts)))
        require(task, "prompts", not missing, f"no template {', '.join(missing)} in {_folder(task.prompts)}")
        for role in task.workflow.order:
            task.prompt(first, role)
    except TemplateError as error:
        require(task, "prompts", False, str(error))
    texts = [f"{path.name}\n{path.read_text(encoding='utf-8')}" for path in _files(task.prompts)]
    object.__setattr__(task, "prompts_digest", hash_bytes("\n".join(texts)).hex())


def shortened(text: str, most: int) -> str:
    """The two ends of a text that is longer than so many characters, and that it was cut."""
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]}\n... (cut after {half} characters; it ends with:)\n{text[-half:]}"


def bounded(value: Any, most: int) -> Any:
    """A template's value that holds others' words, cut to so many characters: of a text its two ends, of a
    list its first items. Of a mapping each value is cut by itself. What was cut says so."""
    if isinstance(value, str):
        return shortened(value, most)
    if isinstance(value, Mapping):
        return {name: bounded(one, most) for name, one in value.items()}
    if not isinstance(value, (list, tuple)):
        return value
    kept: list[Any] = []
    left = most
    for one in value:
        cut = bounded(one, most)
        left -= len(str(cut)) + 1
        if left < 0:
            return [*kept, f"... (cut after {most} characters)"]
        kept.append(cut)
    return kept


def _own(folder: str) -> Path:
    return Path(folder).expanduser()


def _folder(folder: str) -> Path:
    """One of the user's, or one of ours."""
    return _own(folder) if _own(folder).is_dir() else SHIPPED / folder


def _files(folder: str) -> list[Path]:
    return sorted(_folder(folder).glob("*.txt"))


@functools.lru_cache
def _templates(folder: str) -> dict[str, jinja2.Template]:
    files = _files(folder)
    if not files:
        raise TemplateError(f"no prompts in {folder!r}: neither a folder here nor one in {SHIPPED}")
    language = jinja2.sandbox.ImmutableSandboxedEnvironment(
        loader=jinja2.FileSystemLoader(_folder(folder)),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    try:
        return {path.stem: language.get_template(path.name) for path in files if path.name[0] != "_"}
    except jinja2.TemplateSyntaxError as error:
        raise TemplateError(f"{error.filename}, line {error.lineno}: {error.message}") from error
