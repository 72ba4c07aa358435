"""Reads gin files as an Experiment, and writes them. No other file imports gin."""

import importlib
import re
import sys
import tokenize
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from atgrpo_jax.common.buckets import bucket_path, is_url
from atgrpo_jax.common.errors import ConfigError, one_line
from atgrpo_jax.common.files import Place, read_file
from atgrpo_jax.run.experiment import Experiment, first_difference
from atgrpo_jax.run.gin_names import Maker, known_modules, nearest, nearest_makers, unknown
from atgrpo_jax.run.gin_values import AS_SAID, Instead, Macro, Reference, Values, made
from atgrpo_jax.run.gin_wiring import wire
from atgrpo_jax.run.gin_writing import text_of
from atgrpo_jax.run.kept_source import FOLDER, make_importable
from gin import config_parser

_PACKAGE = Path(__file__).resolve().parents[1]
_PARAM = "--gin_param"
HERE = "$HERE/"  # in a text of a gin file: the file's own folder


def load(gin_files: str | Sequence[str], bindings: Sequence[str] = ()) -> Experiment:
    """Returns the experiment that gin files and further bindings describe.

    The last value of a field counts: files are read in order, and bindings after them. Files, and
    those that they include, are looked for in the working directory, then in ``gin_folder()``. In a
    file, "$HERE/" is the folder of that file.

    Raises ConfigError, in one line that names the file at fault, for a file that is not there, an
    unknown name, a value of the wrong type or range, or an impossible combination.
    """
    return read(gin_files, bindings)[0]


def read(
    gin_files: str | Sequence[str], bindings: Sequence[str] = (), instead: Instead = AS_SAID
) -> tuple[Experiment, Values]:
    """Returns what ``load`` does, and the values that the experiment was made of."""
    files = [gin_files] if isinstance(gin_files, str) else list(gin_files)
    reader = _Reader()
    for name in files:
        reader.read_file(name)
    symbols = dict(reader.imported)
    for binding in bindings:
        reader.read_text(binding, _PARAM, symbols)
    reader.values.set_unset(instead.unset)
    sources = ", ".join([*files, _PARAM] if bindings else files)
    return _experiment(reader, sources, instead), reader.values


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


def render(experiment: Experiment) -> str:
    """Returns a self-contained gin file that sets every field, defaults included.

    ``load`` makes an equal experiment of it. Raises ConfigError if it would not: for a part that is
    not a dataclass, a value that is not plain, or a class that another process cannot import.
    """
    text = text_of(experiment)
    reader = _Reader()
    reader.read_text(text, "config.gin", {}, lines=True)
    again = _experiment(reader, "config.gin")
    if (lost := first_difference("Experiment", experiment, again)) is not None:
        raise ConfigError(f"this run could not be read again from its config.gin: {lost}")
    return text


def movable(text: str, folder: Place) -> str:
    """Returns a gin file that ``render`` wrote, in which "$HERE/" stands for its own ``folder``."""
    return text.replace(ascii(f"{folder}/")[1:-1], HERE)


def _escaped(text: str) -> str:
    """Returns a text as it can stand between quotes of either kind."""
    return text.encode("unicode_escape").decode().replace("'", "\\'").replace('"', '\\"')


def _experiment(reader: "_Reader", sources: str, instead: Instead = AS_SAID) -> Experiment:
    """Returns the experiment of what was read. ``sources`` names the files."""
    reader.refuse_unused()
    if not any(maker is Experiment for _, maker in reader.values.fields):
        raise ConfigError(f"{sources} configures no experiment.Experiment")
    wire(reader.values)
    return made(reader.values, sources, instead.make)


def _find(gin_file: str, of: str = "") -> Place:
    if is_url(gin_file):
        try:
            return bucket_path(gin_file)
        except ValueError as error:
            raise ConfigError(f"{of}gin file {gin_file!r} {error}") from error
    places = [Path(gin_file)] if Path(gin_file).is_absolute() else [
        Path.cwd() / gin_file,
        gin_folder() / gin_file,
    ]  # fmt: skip
    for place in places:
        if place.is_file():
            return place
    looked = " and ".join(map(str, places))
    shipped = {str(path.relative_to(gin_folder())) for path in gin_folder().rglob("*.gin")}
    close = nearest(gin_file, shipped | {path.name for path in Path.cwd().glob("*.gin")})
    have = ", ".join(sorted(name for name in shipped if "/" not in name)) or "none"
    close = close if "did you mean" in close else f" (shipped: {have})"
    raise ConfigError(f"{of}gin file {gin_file!r} not found; looked for {looked}{close}")


class _Named(NamedTuple):
    """A reference as it is written: its text, and whether () comes after it."""

    text: str
    called: bool


class _Delegate(config_parser.ParserDelegate):
    def configurable_reference(self, scoped_configurable_name: str, evaluate: bool) -> _Named:
        return _Named(scoped_configurable_name, evaluate)

    def macro(self, macro_name: str) -> Macro:
        return Macro(macro_name)


class _Statement(NamedTuple):
    """Where a statement stands, and the modules that it may name."""

    source: str
    line: int | None
    symbols: dict[str, types.ModuleType]

    @property
    def place(self) -> str:
        return self.source if self.line is None else f"{self.source}, line {self.line}"


class _Reader:
    """Reads files and bindings into ``values``. ``imported`` has all modules that files import."""

    def __init__(self) -> None:
        self.values = Values()
        self.imported: dict[str, types.ModuleType] = {}
        self._reading: list[Place] = []
        self._offers: dict[str, Path] = {}  # the folder of the file that sets a macro

    def read_file(self, name: str, of: str = "") -> None:
        path = _find(name, of)
        if path.name == "config.gin":  # of a run
            make_importable(path.parent / FOLDER)
        if path in self._reading:
            raise ConfigError(f"{of}{name} includes itself")
        try:
            text = read_file(path).decode()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{of}{name} cannot be read: {error}") from error
        self._reading.append(path)
        for word, place in ((f"{HERE}../", path.parent.parent), (HERE, path.parent)):
            text = text.replace(word, _escaped(f"{place}/"))
        self.read_text(text, name, {}, lines=True)
        self._reading.pop()

    def read_text(
        self, text: str, source: str, symbols: dict[str, types.ModuleType], lines: bool = False
    ) -> None:
        """Reads a file's text or a binding. ``symbols`` has the modules that it may name."""
        try:
            statements = list(config_parser.ConfigParser(text, _Delegate()))
        except (SyntaxError, tokenize.TokenError, ValueError) as error:
            raise ConfigError(_syntax(error, text, source, lines)) from error
        for statement in statements:
            at = _Statement(source, statement.location.line_num if lines else None, symbols)
            if isinstance(statement, config_parser.IncludeStatement):
                self.read_file(statement.filename, of=f"{at.place}: ")
            elif isinstance(statement, config_parser.ImportStatement):
                self._import(statement, at)
            elif isinstance(statement, config_parser.BlockDeclaration):
                self._maker(statement.selector, at)
            else:
                self._bind(statement, at)

    def _import(self, statement: Any, at: _Statement) -> None:
        if statement.module.startswith("__gin__."):
            if statement.module != "__gin__.dynamic_registration":
                raise ConfigError(f"{at.place}: {statement.format()} is not known here")
            return
        try:
            module = importlib.import_module(statement.module)
        except Exception as error:  # whatever a module of somebody else raises
            raise ConfigError(f"{at.place}: {statement.format()}: {one_line(error)}") from error
        word = statement.bound_name()
        at.symbols[word] = module if statement.is_from or statement.alias else sys.modules[word]
        self.imported[word] = at.symbols[word]

    def _bind(self, statement: Any, at: _Statement) -> None:
        value = self._resolved(statement.value, at)
        if not statement.arg_name:
            name = "/".join(filter(None, (statement.scope, statement.selector)))
            self.values.set_macro(name, value, at.source, at.line)
            if self._reading and isinstance(self._reading[-1], Path):
                self._offers[name] = self._reading[-1].parent
            return
        maker = self._maker(statement.selector, at)
        if why := unknown(maker, statement.arg_name):
            raise ConfigError(f"{at.place}: {statement.selector}{why}")
        self.values.set_field(statement.scope, maker, statement.arg_name, value, at.source, at.line)

    def _resolved(self, value: Any, at: _Statement) -> Any:
        """Returns a value with references to classes and functions in place of their names."""
        if isinstance(value, _Named):
            *scopes, selector = value.text.split("/")
            if not value.called:
                raise ConfigError(f"{at.place}: @{value.text} lacks its brackets; write @{value.text}()")
            return Reference(self._maker(selector, at), tuple(scopes))
        if isinstance(value, dict):
            return {key: self._resolved(item, at) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(self._resolved(item, at) for item in value)
        return value

    def _maker(self, selector: str, at: _Statement) -> Maker:
        """Returns the class or function that is written as "module.Name".

        An imported module comes before a known one of the same word, if it has that name.
        """
        word, *names = selector.split(".")
        modules: list[Any] = [at.symbols[word]] if word in at.symbols else []
        if word in known_modules():
            modules.append(importlib.import_module(known_modules()[word]))
        for found in modules:
            for name in names:
                found = getattr(found, name, None)
            if names and callable(found):
                self.values.names.setdefault(found, selector)
                return found
        raise ConfigError(f"{at.place}: there is no {selector}{self._nearest_maker(selector, at)}")

    def _nearest_maker(self, selector: str, at: _Statement) -> str:
        word = selector.rpartition(".")[0]
        module = at.symbols.get(word)
        if module is None:
            return nearest_makers(selector)
        names = (other for other, value in vars(module).items() if callable(value))
        return nearest(selector, (f"{word}.{other}" for other in names))

    def refuse_unused(self) -> None:
        """Raises ConfigError for macros and scopes that nothing uses.

        A file may set a macro for other files of its folder, and a shipped one for all shipped ones.
        """
        for name, setting in self.values.macros.items():
            if name not in self.values.macros_used and (setting.source == _PARAM or not self._offered(name)):
                close = nearest(name, self.values.macros_used)
                raise ConfigError(f"{setting.place}: macro {name} is set but nothing uses it{close}")
        for (scope, maker), settings in self.values.fields.items():
            if scope and scope not in self.values.scopes_used:
                place = next(iter(settings.values())).place
                close = nearest(scope, self.values.scopes_used)
                raise ConfigError(f"{place}: scope {scope} of {maker.__name__} is not used{close}")

    def _offered(self, macro: str) -> bool:
        if macro not in self._offers:
            return False
        folder = self._offers[macro]
        shipped = folder.is_relative_to(gin_folder())
        files = gin_folder().rglob("*.gin") if shipped else folder.glob("*.gin")
        return any(re.search(rf"%{macro}\b", path.read_text(encoding="utf-8")) for path in files)


def _syntax(error: Exception, text: str, source: str, lines: bool) -> str:
    """Returns the line for a text that is not gin."""
    number = next((arg[1] for arg in error.args[1:] if isinstance(arg, tuple)), None)
    if isinstance(error, tokenize.TokenError):
        number = error.args[1][0]
    place = f"{source}, line {number}" if lines and number else f"{source} {text.strip()!r}"
    said = " ".join(str(error.args[0]).split())
    if word := re.search(r"malformed node .*Failed to parse token '(\w+)'", said):
        said = (
            f"{word[1]} is no value; write a text as {word[1]!r}, a part as @module.Class(), a macro as %NAME"
        )
    return f"{place}: {said}"
