"""What a child of the sandbox's worker does once nothing is left that it could harm: it runs a program."""

import __future__

import atexit
import builtins
import gc
import json
import linecache
import os
import random
import site
import sys
import threading
import traceback
import types
from collections import deque
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from itertools import islice
from typing import Any

READY, BUILT = b".", b"built"  # what is noted
NOTE = 3  # descriptor: what is written there before the program runs is not its own doing
GONE = 86  # exit code of a harness whose program has ended
UNWRITTEN = 120  # exit code of Python, if it cannot write a program's output
_GIVEN = 4  # descriptor: the source, and whatever else is to be known of it, as JSON
_ASKED, _TOLD = 5, 6  # descriptors between a program and its harness
ITEMS = 10_000  # of an iterator, that are handed over
_STARTED: dict[types.ModuleType, dict[str, Any]] = {}  # names that a program finds and may have changed


def run() -> None:
    """Runs a program as Python runs a script, with its exit code, and ends this process."""
    _leave(_execute(_begin(_given(), "program.py"), "program.py", {})[1] or 0)


def serve() -> None:
    """Runs a program, then calls what it defines, as its harness asks; ends with the harness, and before it
    has begun if the program does not run through."""
    try:
        module, code = _execute(_begin(_given(), "program.py"), "program.py", {})
        if code is not None:
            return
        with os.fdopen(_ASKED, encoding="utf-8") as asked:
            for line in asked:
                _tell(_answer(json.loads(line), module))
    finally:
        os._exit(1)  # without whatever the program has left to be done at the end


def check() -> None:
    """Runs a harness, to which each of the names is a function of the served program, and ends."""
    given = _given()
    asked = os.fdopen(_ASKED, encoding="utf-8")
    remote = {name: _remote(name, asked) for name in given["names"]}
    _leave(_execute(_begin(given, "harness.py"), "harness.py", remote)[1] or 0)


def _given() -> dict[str, Any]:
    given = json.loads(os.pread(_GIVEN, os.fstat(_GIVEN).st_size, 0))
    os.close(_GIVEN)
    return given


def _answer(call: dict[str, Any], module: dict[str, Any]) -> dict[str, Any]:
    try:
        function = eval(call["name"], module)
        result = function(*map(_plain, call["args"]), **{k: _plain(v) for k, v in call["named"].items()})
        return {"result": _written(result)}
    except BaseException as error:
        return {"error": f"{type(error).__name__}: {error}"[:500]}


def _begin(given: dict[str, Any], name: str) -> str:
    """Makes the module of a script, with what comes before its source in it. Its source."""
    module: Any = types.ModuleType(given["name"])
    module.__builtins__, module.__annotations__ = builtins, {}
    module.__file__, module.__cached__ = os.path.abspath(name), None
    sys.modules["__main__"] = sys.modules[given["name"]] = module
    sys.argv = [name]
    for words in (site.setquit, site.setcopyright, site.sethelper):  # a worker starts without ``site``
        words()
    _STARTED.update({module: dict(vars(module)) for module in (builtins, sys)})
    random.seed(0)  # so that the same program does the same again
    if given["before"]:
        exec(compile(given["before"], "before.py", "exec", dont_inherit=True), module.__dict__)
    return given["source"].removeprefix("\ufeff")


def _execute(source: str, name: str, known: dict[str, Any]) -> tuple[dict[str, Any], int | None]:
    """The names it leaves and its exit code, None if it has run through. Its own exceptions are printed as
    Python prints them."""
    module = sys.modules["__main__"]
    module.__dict__.update(known)
    linecache.cache[name] = (len(source), None, [f"{line}\n" for line in source.split("\n")], name)
    try:
        code = compile(source, name, "exec", _future(module), dont_inherit=True)
        os.write(NOTE, BUILT)
        os.close(NOTE)
        exec(code, module.__dict__)
    except SystemExit as error:
        return module.__dict__, _exit_code(error)
    except BaseException as error:
        error.__traceback__ = error.__traceback__ and error.__traceback__.tb_next  # this function's frame
        _print(error)
        return module.__dict__, 1
    return module.__dict__, None


def _print(error: BaseException) -> None:
    """With the program's own hook, if it has one; Python's would look for the source in a file."""
    if sys.excepthook is sys.__excepthook__:
        traceback.print_exception(error)
    else:
        sys.excepthook(type(error), error, error.__traceback__)


def _future(module: types.ModuleType) -> int:
    """The flag for ``compile`` if what came before has asked for it: as if the two were one text."""
    asked = vars(module).get("annotations")
    return __future__.annotations.compiler_flag if asked is __future__.annotations else 0


def _exit_code(error: SystemExit) -> int:
    if error.code is None or isinstance(error.code, int):
        code = error.code or 0
        return code & 255 if abs(code) < 1 << 63 else 255
    print(error.code, file=sys.stderr)
    return 1


def _leave(code: int) -> None:
    """As the interpreter ends a program: its threads, what it has registered, then what it has left, all of
    which may still print. Without taking the interpreter itself apart, which takes five times as long."""
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        code = _flush() or code
        gc.collect()  # puts what holds something before what it holds: streams are ended before their files
        for name in [name for name, module in sys.modules.items() if module is sys.modules.get("__main__")]:
            del sys.modules[name]
        for module, names in _STARTED.items():
            for added in vars(module).keys() - names.keys():
                del vars(module)[added]
            vars(module).update(names)
        gc.collect()
        _flush()
    except BaseException:
        code = code or 1
    os._exit(code)


def _flush() -> int:
    """The standard streams; the exit code of a program whose output cannot be written, or 0."""
    code = 0
    for name in ("stdout", "stderr", "__stdout__", "__stderr__"):
        stream = getattr(sys, name, None)
        try:
            if stream is not None and not getattr(stream, "closed", False):
                stream.flush()
        except Exception:
            code = UNWRITTEN
    return code


def _remote(name: str, answers: Any) -> Callable[..., Any]:
    def call(*args: Any, **named: Any) -> Any:
        given = {"args": list(map(_written, args)), "named": {k: _written(v) for k, v in named.items()}}
        try:
            _tell({"name": name} | given)
            line = answers.readline()
        except BrokenPipeError:
            line = ""
        if not line:  # no exception, which a test might expect
            sys.stdout.flush()
            os._exit(GONE)
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"{name}: {answer['error']}")
        return _plain(answer["result"])

    call.__name__ = name
    return call


def _tell(message: dict[str, Any]) -> None:
    data = json.dumps(message).encode() + b"\n"
    while data:
        data = data[os.write(_TOLD, data) :]


_BY_TAG: dict[str, Callable[[Any], Any]] = {
    "tuple": lambda items: tuple(map(_plain, items)),
    "set": lambda items: set(map(_plain, items)),
    "frozenset": lambda items: frozenset(map(_plain, items)),
    "deque": lambda items: deque(map(_plain, items)),
    "dict": lambda items: {_plain(key): _plain(value) for key, value in items},
    "iterator": lambda given: _iterated(*given),
    "range": lambda given: range(*given),
    "int": lambda digits: int(digits, 16),  # unlike decimal ones, of any length
    "type": lambda name: _type(name),
    "Decimal": Decimal,
    "Fraction": Fraction,
    "float": float,
    "complex": complex,
    "bytes": bytes.fromhex,
    "object": lambda given: _made(*given),
}


def _made(name: str, attributes: dict[str, Any]) -> Any:
    """An object of a class that this side itself defines under that name; nothing of the other's is run."""
    own = sys.modules["__main__"]
    kind = vars(own).get(name)
    if not (isinstance(kind, type) and kind.__module__ == own.__name__):
        raise TypeError(f"no class {name} here")
    made: Any = object.__new__(kind)
    made.__dict__.update({key: _plain(value) for key, value in attributes.items()})
    return made


def _type(name: str) -> type:
    found = vars(builtins)[name]
    if not isinstance(found, type):  # none of its functions
        raise TypeError(f"{name} is no type")
    return found


def _iterated(items: list[Any], whole: bool) -> Iterator[Any]:
    yield from map(_plain, items)
    if not whole:
        raise RuntimeError(f"it has more than {ITEMS} items")


def _written(value: Any) -> Any:
    """Plain data as JSON, and objects of the script's own classes. Raises TypeError for anything else."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return value if abs(value) < 1 << 63 else {"int": hex(value)}
    if isinstance(value, list):
        return list(map(_written, value))
    if isinstance(value, float):
        return {"float": repr(float(value))}
    if isinstance(value, complex):
        return {"complex": repr(complex(value))}
    if isinstance(value, (Decimal, Fraction)):
        return {type(value).__name__: str(value)}
    if isinstance(value, (bytes, bytearray)):
        return {"bytes": value.hex()}
    if isinstance(value, type) and value.__module__ == "builtins":
        return {"type": value.__name__}
    if isinstance(value, range):
        return {"range": [value.start, value.stop, value.step]}
    if isinstance(value, Iterator):
        items = list(map(_written, islice(value, ITEMS + 1)))
        return {"iterator": [items[:ITEMS], len(items) <= ITEMS]}
    if isinstance(value, dict):
        return {"dict": [[_written(key), _written(item)] for key, item in value.items()]}
    for kind in (tuple, set, frozenset, deque):
        if isinstance(value, kind):
            return {kind.__name__: list(map(_written, value))}
    if type(value).__module__ == sys.modules["__main__"].__name__ and hasattr(value, "__dict__"):
        attributes = {key: _written(item) for key, item in vars(value).items()}
        return {"object": [type(value).__name__, attributes]}
    raise TypeError(f"{type(value).__name__} is no plain data")


def _plain(written: Any) -> Any:
    if isinstance(written, list):
        return list(map(_plain, written))
    if isinstance(written, dict):
        ((tag, value),) = written.items()
        return _BY_TAG[tag](value)
    return written
