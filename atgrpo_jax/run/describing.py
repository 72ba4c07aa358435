"""Says of every field of an experiment what it means, and where its value comes from."""

import ast
import dataclasses
import functools
import inspect
import io
import re
import textwrap
import tokenize
import typing
from collections.abc import Iterator
from typing import Any

from atgrpo_jax.common.checks import expected
from atgrpo_jax.common.literals import literal
from atgrpo_jax.run.experiment import Experiment
from atgrpo_jax.run.gin_names import name_of
from atgrpo_jax.run.gin_values import Macro, Reference, Values
from atgrpo_jax.run.gin_writing import text_of

_WIDTH = 100
_LONGEST = 60  # characters of a default that are shown


def description(experiment: Experiment, values: Values) -> str:
    """Returns the experiment as a gin file, with comments above every field.

    They say what the field means, its type, its default, and what has set it. ``values`` are those
    that the experiment was made of.
    """

    def above(place: str, part: Any, field: str) -> str:
        kind = type(part)
        facts = f"{_type(kind, field)}; {_default(kind, field)}; {_origin(place, part, field, values)}"
        lines = [meaning(kind, field, getattr(part, field)), f"[{facts}]"]
        return "\n".join(
            textwrap.fill(line, _WIDTH, initial_indent="# ", subsequent_indent="#   ", break_long_words=False)
            for line in filter(None, lines)
        )

    return text_of(experiment, above)


def meaning(kind: type, field: str, value: Any = None) -> str:
    """Returns what the source says of a field of a dataclass; "" if it says nothing.

    That is the comment above or beside it, else the sentences of the class's docstring that quote its
    name, or lines there in which it is a factor; if a base class has the field, they may be there. Else
    it is the first sentence on the class of its ``value``.
    """
    found = next(filter(None, (_comments(base).get(field) for base in kind.__mro__)), "")
    for base in () if found else kind.__mro__:
        said = vars(base).get("__doc__")
        factor = rf"(?<![\w.]){field} [*/]|[*/] {field}\b"
        rows = (" ".join(line.split()) for line in (said or "").splitlines() if re.search(factor, line))
        found = found or " ".join(s for s in _sentences(said) if f"``{field}``" in s) or "; ".join(rows)
    if not found and dataclasses.is_dataclass(value) and vars(type(value)).get("__doc__"):
        found = next(_sentences(inspect.getdoc(type(value))), "")
        # A dataclass without a docstring gets its own signature as one.
        found = "" if found.startswith(f"{type(value).__name__}(") else found
    return found


@functools.cache
def _comments(kind: type) -> dict[str, str]:
    """Returns the comments above and beside the fields of a class; none if its source is not at hand."""
    try:
        source = textwrap.dedent(inspect.getsource(kind))
    except (OSError, TypeError):  # of Python itself, or typed at a prompt
        return {}
    lines = source.splitlines()
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    said = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    (tree,) = ast.parse(source).body
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for node in tree.body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        first = node.lineno
        while first - 1 in said and lines[first - 2].lstrip().startswith("#"):
            first -= 1
        assert node.end_lineno is not None
        inner = range(first, node.end_lineno + 1)
        found[node.target.id] = " ".join(said[line] for line in inner if line in said)
    return found


def _sentences(text: str | None) -> Iterator[str]:
    for paragraph in re.split(r"\n\s*\n", text or ""):
        yield from re.split(r"(?<=[.:])\s+(?=[A-Z`])", " ".join(paragraph.split()))


def _type(kind: type, field: str) -> str:
    return (
        expected(typing.get_type_hints(kind)[field]).removeprefix("expected ").replace("collections.abc.", "")
    )


def _default(kind: type, field: str) -> str:
    (found,) = (f for f in dataclasses.fields(kind) if f.name == field)
    if found.default_factory is not dataclasses.MISSING:
        value = found.default_factory()
    elif found.default is not dataclasses.MISSING:
        value = found.default
    else:
        return "without a default"
    text = f"@{name_of(type(value))}()" if dataclasses.is_dataclass(value) else literal(value) or repr(value)
    return f"default {text if len(text) <= _LONGEST else text[:_LONGEST] + '...'}"


def _origin(place: str, part: Any, field: str, values: Values) -> str:
    """Returns where the value of a field comes from."""
    made = values.parts.get(id(part))
    if made is not None and made.maker is not type(part):
        return f"made by {values.name(made.maker)} ({made.place})"
    setting = made.settings.get(field) if made is not None else None
    if setting is None:
        (found,) = (f for f in dataclasses.fields(part) if f.name == field)
        own = found.default_factory() if callable(found.default_factory) else found.default
        return "not set" if own == getattr(part, field) else f"not set, as in the default of {place}"
    if isinstance(setting.value, Reference) and setting.value.wired:
        return "not set, but fields of it are"
    if isinstance(setting.value, Macro):
        macro = values.macros[setting.value.name]
        return f"set in {setting.place}, by %{setting.value.name} of {macro.place}"
    return f"set in {setting.place}"
