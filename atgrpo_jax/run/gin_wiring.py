"""Puts parts that have values into the fields where they can stand.

A gin file that sets ``rollout.RolloutConfig.candidates`` need not say that it means the experiment's
rollout: ``wire`` finds the one field for it. It only looks at parts that no value refers to, so a
file that says all of this itself keeps its meaning.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

from atgrpo_jax.common.errors import ConfigError
from atgrpo_jax.run.experiment import Experiment
from atgrpo_jax.run.gin_names import Maker, accepts, default_of, name_of, part_fields
from atgrpo_jax.run.gin_values import Macro, Reference, Setting, Values, inside


@dataclasses.dataclass(frozen=True)
class _Field:
    """A field that may hold a part: whose, its type, what it is set to, and the field its owner is in.

    ``above`` is None if a value refers to the owner. Otherwise the owner is a default value.
    """

    owner: Maker
    name: str
    hint: Any
    setting: Setting | None
    above: "_Field | None"

    def __str__(self) -> str:
        return f"{name_of(self.owner)}.{self.name}"


def wire(values: Values) -> None:
    """Refers to every part that has values, by the field in which it can stand.

    A field that is set to None after all values of a part drops these values. A field that another
    file sets to another part does so, too. Values that come after None set the field again.

    Raises ConfigError for a part that can stand in several fields or in none, and for two parts
    that can stand in one field.
    """
    dropped: list[_Field] = []
    while loose := _loose(values):
        fields = [*_fields(values), *dropped]
        _refuse_rivals(values, loose, fields)
        if not any(_place(values, maker, fields, dropped) for maker in loose):
            _refuse(values, loose[0], fields)
    for maker in _shared(values):
        free = [field for field in _fields(values) if _is_default(field, maker)]
        if len(free) == 1:
            _refer(values, free[0], maker)


def _loose(values: Values) -> list[Maker]:
    """Returns the makers that have values without a scope, and that no value refers to."""
    referred = values.referred()
    makers = [maker for (scope, maker), fields in values.fields.items() if fields and not scope]
    return [maker for maker in makers if maker is not Experiment and maker not in referred]


def _shared(values: Values) -> list[Maker]:
    """Returns the makers that have values without a scope, and that values refer to in scopes only.

    These values count in all scopes. They may also be meant for a field of their own: those of a mesh
    for the learner's, beside the engine's in a scope.
    """
    scoped = values.referred() - values.referred(scoped=False)
    return [
        maker for (scope, maker), fields in values.fields.items() if fields and not scope and maker in scoped
    ]


def _is_default(field: _Field, maker: Maker) -> bool:
    """Returns whether a field that nothing sets holds such a part by default."""
    return field.setting is None and type(default_of(field.owner, field.name)) is maker


def _fields(values: Values) -> Iterator[_Field]:
    """Yields all fields of the experiment, and of the parts in it, that may hold a part."""
    seen: set[Maker] = set()
    referred: list[tuple[Maker, _Field | None]] = [(Experiment, None)]
    defaults: list[tuple[Maker, _Field | None]] = []
    while referred or defaults:
        owner, above = referred.pop() if referred else defaults.pop()
        if owner in seen:
            continue
        seen.add(owner)
        settings = [fields for (_, maker), fields in values.fields.items() if maker is owner]
        for item in (item for fields in settings for s in fields.values() for item in inside(s.value)):
            referred += [(maker, None) for maker in _makers(values, item)]
        for name, hint in part_fields(owner).items():
            found = next((fields[name] for fields in settings if name in fields), None)
            field = _Field(owner, name, hint, found, above)
            yield field
            default = default_of(owner, name)
            if found is None and dataclasses.is_dataclass(default):
                defaults.append((type(default), field))


def _makers(values: Values, item: Macro | Reference, within: tuple[str, ...] = ()) -> Iterator[Maker]:
    """Yields the maker of a reference, or the makers in the value of a macro."""
    if isinstance(item, Reference):
        yield item.maker
    elif item.name in values.macros and item.name not in within:
        for inner in inside(values.macros[item.name].value):
            yield from _makers(values, inner, (*within, item.name))


def _place(values: Values, maker: Maker, fields: list[_Field], dropped: list[_Field]) -> bool:
    """Puts a part into its field, or drops its values. Returns whether there was a reason to."""
    fits = [field for field in fields if field.hint is maker or accepts(field.hint, maker)]
    free = [field for field in fits if field.setting is None]
    # A field that is None by default waits for a reference, if another one fits: a mesh is the
    # learner's, unless a file says that it is the engine's.
    free = [field for field in free if default_of(field.owner, field.name) is not None] or free
    if len(free) > 1:
        name = values.name(maker)
        places = " or ".join(map(str, free))
        raise ConfigError(f"{_newest(values, maker).place}: {name} can be {places}; write ... = @{name}()")
    if free:
        _refer(values, free[0], maker)
        return True
    for field in fits:
        assert field.setting is not None
        inner = list(_inner_fields(values, maker, field.setting))
        if _forget(values, maker, field.setting):
            dropped += inner
            return True
        if field.setting.value is None:
            _refer(values, field, maker)
            return True
    return False


def _inner_fields(values: Values, maker: Maker, later: Setting) -> Iterator[_Field]:
    """Yields fields for the parts of a part, as if they were set to what replaces the whole."""
    for name, hint in part_fields(maker).items():
        yield _Field(maker, name, hint, later, None)
    for name, setting in values.fields["", maker].items():
        for item in inside(setting.value):
            if isinstance(item, Reference):
                yield _Field(maker, name, item.maker, later, None)


def _forget(values: Values, maker: Maker, later: Setting) -> bool:
    """Removes the values of a part that came before what replaces it. Returns if there were any.

    What one file says of a part stays if the same file chooses another part: that is a mistake.
    """
    settings = values.fields["", maker]
    old = [
        name
        for name, setting in settings.items()
        if setting.number < later.number and (later.value is None or setting.source != later.source)
    ]
    for name in old:
        del settings[name]
    return bool(old)


def _refer(values: Values, field: _Field, maker: Maker) -> None:
    """Sets a field to a part, and before that the field that the field's owner is in."""
    if field.above is not None:
        _refer(values, field.above, field.owner)
    newest = _newest(values, maker) if ("", maker) in values.fields else None
    at = (newest.source, newest.line) if newest else ("", None)
    values.set_field("", field.owner, field.name, Reference(maker, wired=True), *at)


def _newest(values: Values, maker: Maker) -> Setting:
    return max(values.fields["", maker].values(), key=lambda setting: setting.number)


def _refuse_rivals(values: Values, loose: list[Maker], fields: list[_Field]) -> None:
    for field in fields:
        rivals = [maker for maker in loose if field.setting is None and accepts(field.hint, maker)]
        if len(rivals) > 1:
            names = [values.name(maker) for maker in rivals]
            raise ConfigError(
                f"{' and '.join(names)} have values, and {field} can be only one of them; write "
                + " or ".join(f"{field} = @{name}()" for name in names)
            )


def _refuse(values: Values, maker: Maker, fields: list[_Field]) -> None:
    name = values.name(maker)
    why = "no part of the experiment has a field for it"
    for field in fields:
        if field.setting is not None and accepts(field.hint, maker):
            why = f"{field} is another part ({field.setting.place}); write {field} = @{name}()"
    place = _newest(values, maker).place
    raise ConfigError(f"{place}: {name} has values but nothing refers to it: {why}")
