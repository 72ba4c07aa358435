"""Reads gin files as an Experiment, and writes them. No other file imports gin."""

import ast
import dataclasses
import importlib.util  # noqa: F401  (gin's search path needs it loaded, on Python 3.11)
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gin
from atgrpo_jax.common.errors import ConfigError, UserError
from atgrpo_jax.run.experiment import Experiment, first_difference
from gin import config as gin_config

_PACKAGE = Path(__file__).resolve().parents[1]

# Errors of gin for a bad file or binding, and of constructors for a bad value.
_GIN_ERRORS = (
    ValueError, TypeError, SyntaxError, NameError, ImportError, AttributeError, KeyError,
    RuntimeError, OSError,
)  # fmt: skip


def load(gin_file: str, bindings: Sequence[str] = ()) -> Experiment:
    """Returns the experiment that a gin file and further bindings describe.

    ``gin_file`` and the files that it includes are looked for in the working directory, then in
    ``gin_folder()``.

    Raises ConfigError, in one line, for a file that is not there, an unknown or misspelt parameter,
    macro or scope, a value of the wrong type or range, or an impossible combination.
    """
    path = _find(gin_file)
    return _experiment(gin_file, lambda: gin.parse_config_files_and_bindings([str(path)], list(bindings)))


def gin_folder(package: Path = _PACKAGE) -> Path:
    """Returns the folder of the shipped gin files.

    It is inside an installed package, and beside the package in a checkout. (The gin library is
    beside an installed package, in a folder of the same name, but that has no gin files.)

    Raises ConfigError if there is none.
    """
    places = (package / "gin", package.parent / "gin")
    for place in places:
        if any(place.glob("*.gin")):
            return place
    raise ConfigError(
        f"the gin files that come with atgrpo_jax are not there; looked in {places[0]} and {places[1]}. "
        "Install the package again, or run it from a whole checkout"
    )


def _experiment(gin_file: str, parse: Callable[[], object]) -> Experiment:
    """Calls ``parse``, which configures gin, and returns the experiment that this defines.

    Raises ConfigError, which names ``gin_file``.
    """
    gin.clear_config()
    logging.disable(logging.ERROR)  # gin logs every place without an included file
    try:
        gin.add_config_file_search_path(str(gin_folder()))
        parse()
        _refuse_unused(gin_file)
        try:
            configured = gin.get_configurable(Experiment)
        except ValueError:
            raise ConfigError(f"{gin_file} configures no experiment.Experiment") from None
        if not any(selector == _selector(Experiment) for _, selector in gin_config._CONFIG):
            raise ConfigError(f"{gin_file} configures no experiment.Experiment")
        return configured()
    except UserError as error:
        raise ConfigError(_one_line(error)) from error
    except _GIN_ERRORS as error:
        raise ConfigError(f"{gin_file}: {_one_line(error)}") from error
    finally:
        logging.disable(logging.NOTSET)
        gin.clear_config()


def render(experiment: Experiment) -> str:
    """Returns a self-contained gin file that sets every field, defaults included.

    ``load`` makes an equal experiment of it. Raises ConfigError if it would not: for a part that is
    not a dataclass, a value that is not plain, or a class that another process cannot import.
    """
    parts = list(_parts("Experiment", experiment))
    scopes = _scopes(parts)
    blocks = []
    for _, part in parts:
        fields = [field.name for field in dataclasses.fields(part) if field.init]
        name = _name(part, scopes)
        blocks.append("\n".join(f"{name}.{field} = {_value(part, field, scopes)}" for field in fields))
    imports = sorted({_import(type(part)) for _, part in parts})
    header = ["from __gin__ import dynamic_registration", *imports]
    text = "\n".join(header) + "\n\n" + "\n\n".join(block for block in blocks if block) + "\n"
    again = _experiment("config.gin", lambda: gin.parse_config(text))
    if (lost := first_difference("Experiment", experiment, again)) is not None:
        raise ConfigError(f"this run could not be read again from its config.gin: {lost}")
    return text


def _find(gin_file: str) -> Path:
    places = [Path(gin_file)] if Path(gin_file).is_absolute() else [
        Path.cwd() / gin_file,
        gin_folder() / gin_file,
    ]  # fmt: skip
    for place in places:
        if place.is_file():
            return place
    looked = " and ".join(map(str, places))
    have = ", ".join(sorted(path.name for path in gin_folder().glob("*.gin"))) or "none"
    raise ConfigError(f"gin file {gin_file!r} not found; looked for {looked} (shipped: {have})")


def _refuse_unused(gin_file: str) -> None:
    """Raises ConfigError for bindings that nothing refers to.

    gin accepts a misspelt macro or scope silently; it is such a binding.
    """
    references = list(_references(list(gin_config._CONFIG.values())))
    macros = {
        r.scoped_selector.rpartition("/")[0] for r in references if r.configurable.selector == "gin.macro"
    }
    scopes = {scope for r in references for scope in r.scopes}
    for scope, selector in gin_config._CONFIG:
        if selector == "gin.macro":
            if scope not in macros:
                raise ConfigError(f"{gin_file}: macro {scope} is set but nothing uses it; misspelt?")
        elif scope and not set(scope.split("/")) <= scopes:
            name = selector.rpartition(".")[2]
            raise ConfigError(f"{gin_file}: scope {scope} of {name} is not used; misspelt?")
        elif not scope and selector != _selector(Experiment):
            used = any(r.configurable.selector == selector for r in references)
            if not used:
                name = selector.rpartition(".")[2]
                raise ConfigError(f"{gin_file}: {name} has values but nothing refers to it (@...{name}())")


def _references(value: Any) -> Iterator[Any]:
    if isinstance(value, gin_config.ConfigurableReference):
        yield value
    elif isinstance(value, dict):
        for item in (*value.keys(), *value.values()):
            yield from _references(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _references(item)


def _one_line(error: BaseException) -> str:
    """Returns gin's message without its trailer and without its dump of the whole config."""
    text = str(error) if not isinstance(error, KeyError) else str(error.args[0])
    text = text.split("\n  In call to configurable")[0].split(" in config string:")[0]
    return re.sub(r"\s+", " ", text).strip()


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
    taken: dict[tuple[str, str], Any] = {}
    for place, part in parts:
        words = [re.sub(r"\W", "_", word) for word in place.split(".")]
        for scope in ("", words[-1], "_".join(words), "_".join(words) + f"_{len(taken)}"):
            holder = taken.setdefault((_selector(type(part)), scope), part)
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
    text = ascii(value)
    try:
        plain = ast.literal_eval(text) == value
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        plain = False
    if not plain:
        raise ConfigError(
            f"{type(config).__name__}.{field} is a {type(value).__name__}: only dataclasses and plain "
            f"values can be written to the run folder's config.gin, not {text[:80]}"
        )
    return text


def _selector(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _name(part: Any, scopes: Mapping[int, str]) -> str:
    name = f"{type(part).__module__.rpartition('.')[2]}.{type(part).__qualname__}"
    scope = scopes[id(part)]
    return f"{scope}/{name}" if scope else name


def _import(cls: type) -> str:
    package, _, module = cls.__module__.rpartition(".")
    return f"from {package} import {module}" if package else f"import {module}"
