"""Holds what gin files and parameters set, and makes an experiment of it."""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from atgrpo_jax.common.errors import ConfigError, UserError
from atgrpo_jax.run.experiment import Experiment
from atgrpo_jax.run.gin_names import Maker, default_of, lacking, name_of, nearest

UNSET = "what nothing sets"  # the source of such macros
# Makes a part of what a config gives its maker.
Make = Callable[[Maker, Mapping[str, Any]], Any]

# What constructors raise for a bad value, or if a package is missing.
_BAD_VALUE = (ValueError, TypeError, ImportError, AttributeError, LookupError, RuntimeError, OSError)


@dataclasses.dataclass(frozen=True)
class Macro:
    """A value that has a name of its own, as in %MODEL."""

    name: str


@dataclasses.dataclass(frozen=True)
class Reference:
    """A part that is to be made, as in @rollout.RolloutConfig().

    If it is ``wired``, it was not written, and is the field's default with some other values.
    """

    maker: Maker
    scopes: tuple[str, ...] = ()
    wired: bool = False


@dataclasses.dataclass(frozen=True)
class Setting:
    """A value, the file that sets it (or --gin_param) and its line, and how many were set before."""

    value: Any
    source: str
    line: int | None
    number: int

    @property
    def place(self) -> str:
        return self.source if self.line is None else f"{self.source}, line {self.line}"


class Made(NamedTuple):
    """A part that was made: by what, with which values, and the place that asks for it."""

    part: Any  # kept, as ``Values.parts`` knows it by its id
    maker: Maker
    settings: dict[str, Setting]
    place: str


def called(maker: Maker, given: Mapping[str, Any]) -> Any:
    """Makes a part as a run does."""
    return maker(**given)


class Instead(NamedTuple):
    """Says what is made instead of what a config says: of its parts, and of macros that nothing sets."""

    make: Make = called
    unset: Mapping[str, Any] = {}


AS_SAID = Instead()


class Values:
    """All that is set: values of fields by scope and maker, and values of macros.

    ``macros_used`` and ``scoped`` (a scope, and a maker that is referred to in it) have all that was read,
    also in values that others have replaced. ``parts`` has the parts that were made of all this, by
    their ``id``.
    """

    def __init__(self) -> None:
        self.fields: dict[tuple[str, Maker], dict[str, Setting]] = {}
        self.macros: dict[str, Setting] = {}
        self.macros_used: set[str] = set()
        self.scoped: set[tuple[str, Maker]] = set()
        self.names: dict[Maker, str] = {}  # as they are written
        self.parts: dict[int, Made] = {}
        self._count = 0

    def name(self, maker: Maker) -> str:
        """Returns what files call a maker, such as "rollout.RolloutConfig"."""
        return self.names.get(maker) or name_of(maker)

    def set_field(
        self, scope: str, maker: Maker, name: str, value: Any, source: str, line: int | None
    ) -> None:
        self.fields.setdefault((scope, maker), {})[name] = self._setting(value, source, line)

    def set_macro(self, name: str, value: Any, source: str, line: int | None) -> None:
        self.macros[name] = self._setting(value, source, line)

    def set_unset(self, values: Mapping[str, Any]) -> None:
        """Sets macros that something uses and nothing sets."""
        for name in values.keys() & self.macros_used - self.macros.keys():
            self.set_macro(name, values[name], UNSET, None)

    def _setting(self, value: Any, source: str, line: int | None) -> Setting:
        for inner in inside(value):
            if isinstance(inner, Macro):
                self.macros_used.add(inner.name)
            else:
                self.refer(inner.maker, inner.scopes)
        self._count += 1
        return Setting(value, source, line, self._count)

    def refer(self, maker: Maker, scopes: tuple[str, ...]) -> list[tuple[str, Maker]]:
        """Notes that a part is asked for in scopes. Returns the keys of its settings, later ones count."""
        keys = [("/".join(scopes[:depth]), maker) for depth in range(len(scopes) + 1)]
        self.scoped.update(keys)
        return keys

    @property
    def scopes_used(self) -> set[str]:
        return {scope for scope, _ in self.scoped if scope}

    def refuse_scoped(self) -> None:
        """Raises ConfigError for settings in a scope in which nothing makes such a part."""
        for (scope, maker), settings in self.fields.items():
            if scope and (scope, maker) not in self.scoped:
                name = self.name(maker)
                raise ConfigError(
                    f"{next(iter(settings.values())).place}: {scope}/{name} has values, and no {name} is in "
                    f"scope {scope}; write ... = @{scope}/{name}()"
                )

    def referred(self, scoped: bool = True) -> set[Maker]:
        """Returns the makers of all parts that some value refers to.

        Without ``scoped``, references to a part in a scope do not count.
        """
        settings = [setting for fields in self.fields.values() for setting in fields.values()]
        settings += self.macros.values()
        inner = [item for setting in settings for item in inside(setting.value)]
        found = (item for item in inner if isinstance(item, Reference))
        return {item.maker for item in found if scoped or not item.scopes}


def inside(value: Any) -> Iterator[Macro | Reference]:
    """Yields the macros and references in a value."""
    if isinstance(value, (Macro, Reference)):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from inside(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from inside(item)


def made(values: Values, sources: str, make: Make = called) -> Experiment:
    """Makes the experiment. ``sources`` names the files, for errors that belong to none of them.

    ``make`` makes each part. Raises ConfigError, in one line.
    """
    try:
        experiment = _Maker(values, sources, make).make(Experiment, (), sources)
        values.refuse_scoped()
        return experiment
    except UserError as error:
        raise ConfigError(" ".join(str(error).split())) from error


class _Maker:
    def __init__(self, values: Values, sources: str, make: Make):
        self._values = values
        self._sources = sources
        self._make = make

    def make(self, maker: Maker, scopes: tuple[str, ...], place: str, like: Any = None) -> Any:
        """Makes the part that is named at a place.

        What is not set is as in ``like``, if that is a part of the same class.
        """
        settings: dict[str, Setting] = {}
        for key in self._values.refer(maker, scopes):
            settings |= self._values.fields.get(key, {})
        same = type(like) is maker
        given = {}
        for name, setting in settings.items():
            default = None
            if isinstance(setting.value, Reference) and setting.value.wired:
                default = getattr(like, name) if same else default_of(maker, name)
            given[name] = self._value(setting.value, setting, scopes, default)
        if not same and (lacks := lacking(maker, given)):
            name = self._values.name(maker)
            raise ConfigError(f"{place}: {name} needs a {lacks[0]}; write {name}.{lacks[0]} = ...")
        try:
            part = dataclasses.replace(like, **given) if same else self._make(maker, given)
        except _BAD_VALUE as error:
            text = str(error.args[0]) if isinstance(error, KeyError) else str(error)
            raise ConfigError(f"{self._at_fault(text, settings)}: {text}") from error
        self._values.parts[id(part)] = Made(part, maker, settings, place)
        return part

    def _value(self, value: Any, setting: Setting, scopes: tuple[str, ...], like: Any = None) -> Any:
        if isinstance(value, Reference):
            return self.make(value.maker, value.scopes or scopes, setting.place, like)
        if isinstance(value, Macro):
            return self._macro(value.name, setting)
        if isinstance(value, dict):
            return {key: self._value(item, setting, scopes) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(self._value(item, setting, scopes) for item in value)
        return value

    def _macro(self, name: str, user: Setting, within: tuple[str, ...] = ()) -> Any:
        found = self._values.macros.get(name)
        if found is None:
            raise ConfigError(f"{user.place}: macro {name} is not set{nearest(name, self._values.macros)}")
        if name in within:
            raise ConfigError(f"{found.place}: macro {name} is its own value")
        if isinstance(found.value, Macro):
            return self._macro(found.value.name, found, (*within, name))
        return self._value(found.value, found, ())

    def _at_fault(self, text: str, settings: dict[str, Setting]) -> str:
        """Returns the place of the newest value that an error's text names, or of the part's own."""
        named = set(re.findall(r"\b([A-Z]\w+)\.(\w+)", text))
        found = [
            setting
            for (_, maker), fields in self._values.fields.items()
            for name, setting in fields.items()
            if (maker.__name__, name) in named
        ]
        newest = max(found or settings.values(), key=lambda setting: setting.number, default=None)
        return newest.place if newest else self._sources
