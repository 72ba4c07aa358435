"""Writes an experiment as a gin file that sets every field."""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from atgrpo_jax.common.errors import ConfigError
from atgrpo_jax.common.literals import literal
from atgrpo_jax.run.experiment import Experiment, first_difference
from atgrpo_jax.run.gin_names import name_of
from atgrpo_jax.tracking.trackers import Trackers


def text_of(experiment: Experiment, above: Callable[[str, Any, str], str] | None = None) -> str:
    """Returns a self-contained gin file that sets every field, defaults included.

    ``above`` returns the comments above a field, given the place of its part, such as
    "Experiment.task", the part, and the field's name.

    Raises ConfigError for a part that is not a dataclass, for a value that is not plain, and for a
    class that no other process can import.
    """
    parts = list(_parts("Experiment", experiment))
    scopes = _scopes(parts)
    blocks = []
    for place, part in parts:
        lines = []
        for field in (field.name for field in dataclasses.fields(part) if field.init):
            lines += [above(place, part, field)] if above else []
            lines.append(f"{_name(part, scopes)}.{field} = {_value(part, field, scopes)}")
        blocks.append("\n".join(lines))
    imports = sorted({_import(type(part)) for _, part in parts})
    header = ["from __gin__ import dynamic_registration", *imports]
    return "\n".join(header) + "\n\n" + "\n\n".join(block for block in blocks if block) + "\n"


def settings_of(experiment: Experiment) -> dict[str, Any]:
    """Returns all that a config sets, but its trackers, by place: {"rollout.candidates": 4, ...}.

    What is no number, truth value or text is written as one. A part itself is the name of its class.
    """
    found: dict[str, Any] = {}
    for place, part in _parts("", dataclasses.replace(experiment, trackers=Trackers(tensorboard=None))):
        for field in dataclasses.fields(part):
            value = getattr(part, field.name)
            name = f"{place}.{field.name}".lstrip(".")
            if name.startswith("trackers") or not field.init or _holds_parts(value):
                continue
            plain = value is None or isinstance(value, (bool, int, float, str))
            found[name] = value if plain else literal(value) or name_of(type(value))
    return found


def _parts(place: str, config: Any) -> Iterator[tuple[str, Any]]:
    """Yields every dataclass in a config, outer ones first, with its place.

    A place is, for example, "Experiment.model.scout".
    """
    yield place, config
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        inner = f"{place}.{field.name}"
        if dataclasses.is_dataclass(value):
            yield from _parts(inner, value)
        elif _holds_parts(value):
            for key, part in value.items():
                yield from _parts(f"{inner}.{key}", part)


def _holds_parts(value: Any) -> bool:
    return isinstance(value, dict) and any(map(dataclasses.is_dataclass, value.values()))


def _scopes(parts: Sequence[tuple[str, Any]]) -> dict[int, str]:
    """Returns the gin scope of every part, by the part's ``id``.

    The first value of a class needs no scope. Other values get the last word of their place as
    scope or, if that is taken, the whole place, and then a number as well.
    """
    scopes: dict[int, str] = {}
    taken: dict[tuple[type, str], Any] = {}
    for place, part in parts:
        words = [re.sub(r"\W", "_", word) for word in place.split(".")]
        for scope in ("", words[-1], "_".join(words), "_".join(words) + f"_{len(taken)}"):
            holder = taken.setdefault((type(part), scope), part)
            if holder is part or _same(holder, part):
                scopes[id(part)] = scope
                break
    return scopes


def _same(one: Any, other: Any) -> bool:
    return first_difference("", one, other) is None


def _value(config: Any, field: str, scopes: Mapping[int, str]) -> str:
    value = getattr(config, field)
    if dataclasses.is_dataclass(value):
        return f"@{_name(value, scopes)}()"
    if _holds_parts(value):
        items = (f"{key!a}: @{_name(part, scopes)}()" for key, part in value.items())
        return "{" + ", ".join(items) + "}"
    text = literal(value)
    if text is None:
        raise ConfigError(
            f"{type(config).__name__}.{field} is a {type(value).__name__}: only dataclasses and plain "
            f"values can be written to the run folder's config.gin, not {ascii(value)[:80]}"
        )
    return text


def _name(part: Any, scopes: Mapping[int, str]) -> str:
    name = name_of(type(part))
    scope = scopes[id(part)]
    return f"{scope}/{name}" if scope else name


def _import(cls: type) -> str:
    if cls.__module__ == "__main__":
        raise ConfigError(
            f"{cls.__name__} is defined in a script or notebook, which no other process can import; "
            "define it in a file and import it, or start the run with atgrpo_jax.train_team"
        )
    package, _, module = cls.__module__.rpartition(".")
    return f"from {package} import {module}" if package else f"import {module}"
