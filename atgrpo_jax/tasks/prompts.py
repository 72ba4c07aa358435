"""Makes prompts from template files, which say what each role of a task is shown.

A folder has ``ROLE.txt`` for each role, in Jinja's language. Other templates may include files
whose names begin with "_". The folders that ship are in ``tasks/templates``.
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
    """Says that a folder has no templates, that a file in it is no template, or that one uses a
    name that has no value."""


def render(folder: str, role: str, values: Mapping[str, Any]) -> list[Message]:
    """Returns what ``role`` is shown: one message of the user. Raises TemplateError."""
    try:
        content = _templates(folder)[role].render(values, role=role)
    except jinja2.UndefinedError as error:
        raise TemplateError(f"{_folder(folder) / role}.txt: {error.message}") from error
    return [{"role": "user", "content": content.strip("\n")}]


def settle(task: Any, names: Sequence[str], split: str = "train") -> None:
    """Checks the templates of a task; a task calls it in its ``__post_init__``.

    The folder ``task.prompts`` must have templates of those names, and they must be able to show
    every role the first instance of ``split``. Raises ValueError that names the field if not, and
    whatever ``task.instance`` raises. Makes ``task.prompts`` absolute if it is a folder of the
    user, and sets ``task.prompts_digest`` to a digest of the files.
    """
    first = task.initial(task.instance(split, 0))
    if _own(task.prompts).is_dir():
        object.__setattr__(task, "prompts", str(_own(task.prompts).absolute()))
    try:
        missing = sorted(set(names) - set(_templates(task.prompts)))
        require(task, "prompts", not missing, f"no template {', '.join(missing)} in {_folder(task.prompts)}")
        for role in task.workflow.speakers:
            task.prompt(first, role)
    except TemplateError as error:
        require(task, "prompts", False, str(error))
    texts = [f"{path.name}\n{path.read_text(encoding='utf-8')}" for path in _files(task.prompts)]
    object.__setattr__(task, "prompts_digest", hash_bytes("\n".join(texts)).hex())


def shortened(text: str, most: int) -> str:
    """Returns a text, or its two ends and a note if it has more than ``most`` characters."""
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]}\n... (cut after {half} characters; it ends with:)\n{text[-half:]}"


def bounded(value: Any, most: int) -> Any:
    """Returns a value for a template, cut to ``most`` characters, with a note where it was cut.

    A text keeps its two ends, a list its first items. In a mapping each value is cut on its own.
    """
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
    """Returns the user's folder of that name if there is one, else the one that ships."""
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
