"""Says what names in gin files mean, and which right names are nearest to a wrong one."""

import dataclasses
import difflib
import functools
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from atgrpo_jax.run.experiment import Experiment

_PACKAGE = Path(__file__).resolve().parents[1]

# A class or function that a gin file names: it makes a part of the experiment.
Maker = Callable[..., Any]
# Parameters that older files set, and what to do about them now.
GONE = {
    "workflow.Workflow.parallel": 'if it is True, write workflow.Workflow.order = (("a", "b"),) for what '
    'was ("a", "b"); then, or if it is False, delete it (docs/workflows.md)',
}


@functools.cache
def known_modules() -> Mapping[str, str]:
    """Returns the modules that gin files may name without an import, by the last word of the name.

    They are the files of the folders in which the types of an experiment's fields are defined. If
    two files share a word, it means the one that defines such a type, or else neither.
    """
    homes = {kind.__module__ for kind in _kinds(Experiment)}
    by_word = {"experiment": [Experiment.__module__]}
    for folder in {home.split(".")[1] for home in homes}:
        for path in (_PACKAGE / folder).rglob("*.py"):
            name = ".".join(path.relative_to(_PACKAGE.parent).with_suffix("").parts)
            by_word.setdefault(path.stem, []).append(name)
    found = {}
    for word, modules in by_word.items():
        chosen = [name for name in modules if len(modules) == 1 or name in homes]
        if len(chosen) == 1 and word != "__init__":
            found[word] = chosen[0]
    return found


def name_of(maker: Maker) -> str:
    """Returns a maker's name in gin files, such as "rollout.RolloutConfig"."""
    return f"{maker.__module__.rpartition('.')[2]}.{maker.__qualname__}"


def parameters(maker: Maker) -> list[str] | None:
    """Returns the names that a gin file may set for a maker; None if it takes any."""
    if dataclasses.is_dataclass(maker):
        return [field.name for field in dataclasses.fields(maker) if field.init]
    found = inspect.signature(maker).parameters
    return None if any(p.kind is p.VAR_KEYWORD for p in found.values()) else list(found)


def unknown(maker: Maker, name: str) -> str | None:
    """Returns the end of an error's line for a parameter that a maker does not have; None if it does."""
    known = parameters(maker)
    if known is None or name in known:
        return None
    if instead := GONE.get(f"{name_of(maker)}.{name}"):
        return f" has no {name} any more: {instead}"
    return f" has no {name}{nearest(name, known, most=len(known))}"


def lacking(maker: Maker, given: Iterable[str]) -> list[str]:
    """Returns the parameters that a maker needs and is not given."""
    found = inspect.signature(maker).parameters.values()
    named = (p for p in found if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))
    needed = [p.name for p in named if p.default is p.empty]
    return [name for name in needed if name not in given]


def part_fields(maker: Maker) -> dict[str, Any]:
    """Returns the type of every field that may hold a part; there are none if it is a function."""
    if not dataclasses.is_dataclass(maker):
        return {}
    hints = typing.get_type_hints(maker)
    names = [field.name for field in dataclasses.fields(maker) if field.init]
    return {name: hints[name] for name in names if any(True for _ in _part_types(hints[name]))}


def default_of(maker: Maker, name: str) -> Any:
    """Returns the default value of a dataclass's field; None if it has none."""
    (field,) = (f for f in dataclasses.fields(maker) if f.name == name)  # type: ignore[arg-type]
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def accepts(hint: Any, maker: Maker) -> bool:
    """Says whether what a maker makes may stand in a field of this type."""
    made = maker if isinstance(maker, type) else getattr(maker, "__annotations__", {}).get("return")
    return isinstance(made, type) and any(_is_a(made, kind) for kind in _part_types(hint))


def _is_a(made: type, kind: type) -> bool:
    if not getattr(kind, "_is_protocol", False):
        return issubclass(made, kind)
    protocols = [base for base in kind.__mro__ if getattr(base, "_is_protocol", False)]
    needed = {name for base in protocols for name in vars(base) if not name.startswith("_")}
    return needed <= {*dir(made), *getattr(made, "__dataclass_fields__", ())}


def _part_types(hint: Any, in_mappings: bool = False) -> Iterator[type]:
    """Yields the dataclasses and protocols among the alternatives of a type.

    Those of the values of mappings are among them if ``in_mappings``.
    """
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        for alternative in typing.get_args(hint):
            yield from _part_types(alternative, in_mappings)
    elif typing.get_origin(hint) is Mapping:
        yield from _part_types(typing.get_args(hint)[1]) if in_mappings else ()
    elif isinstance(hint, type) and (dataclasses.is_dataclass(hint) or getattr(hint, "_is_protocol", False)):
        yield hint


def _kinds(config: type) -> Iterator[type]:
    """Yields the types of all parts of a config, and of their parts."""
    if not dataclasses.is_dataclass(config):
        return
    hints = typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        for kind in _part_types(hints[field.name], in_mappings=True):
            yield kind
            yield from _kinds(kind)


def nearest(wrong: str, right: Iterable[str], most: int = 20) -> str:
    """Returns the end of an error's line: the right names that are nearest to a wrong one.

    If none is near, it is all names, unless there are more than ``most``.
    """
    names = sorted(set(right))
    close = difflib.get_close_matches(wrong, names, n=3, cutoff=0.6)
    if close:
        return f"; did you mean {' or '.join(close)}?"
    return f"; there are: {', '.join(names)}" if 0 < len(names) <= most else ""


def nearest_makers(wrong: str) -> str:
    """Returns as ``nearest`` does what a wrong "module.Class" could mean; a module may be missing."""
    names = list(_all_makers())
    last = wrong.rpartition(".")[2]
    same = [name for name in names if name.rpartition(".")[2] == last]
    if same:
        return f"; did you mean {' or '.join(same[:3])}?"
    return nearest(wrong, names) or nearest(wrong, (*known_modules(), *names))


def _all_makers() -> Iterator[str]:
    """Yields the classes and functions of all known modules, none of which is imported for it."""
    for word, module in sorted(known_modules().items()):
        text = _PACKAGE.parent.joinpath(*module.split(".")).with_suffix(".py").read_text(encoding="utf-8")
        for name in re.findall(r"^(?:class|def) ([A-Za-z]\w*)", text, re.MULTILINE):
            yield f"{word}.{name}"
