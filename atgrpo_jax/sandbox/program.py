"""What a child of the sandbox's worker does once nothing is left that it could harm: it runs a program."""

import atexit
import json
import linecache
import os
import random
import sys
import threading
import traceback
import types
from collections.abc import Callable
from typing import Any

READY, BUILT = b".", b"built"  # what is noted
NOTE = 3  # descriptor: what is written there before the program runs is not its own doing
GONE = 86  # exit code of a harness whose program has ended
_GIVEN = 4  # descriptor: the source, and whatever else is to be known of it, as JSON
_ASKED, _TOLD = 5, 6  # descriptors between a program and its harness


def run() -> None:
    """Runs a program as Python runs a script, with its exit code, and ends this process."""
    _leave(_execute(_given()["source"], "program.py", {})[1])


def serve() -> None:
    """Runs a program, then calls what it defines, as its harness asks; ends with the harness."""
    try:
        module, _ = _execute(_given()["source"], "program.py", {})
        with os.fdopen(_ASKED, encoding="utf-8") as asked:
            for line in asked:
                _tell(_answer(json.loads(line), module))
    finally:
        os._exit(1)  # without whatever the program has left to be done at the end


def check() -> None:
    """Runs a harness, to which each of the names is a function of the served program, and ends."""
    given = _given()
    asked = os.fdopen(_ASKED, encoding="utf-8")
    _leave(
        _execute(given["source"], "harness.py", {name: _remote(name, asked) for name in given["names"]})[1]
    )


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


def _execute(source: str, name: str, known: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """The names it leaves and its exit code. Its own exceptions are printed as Python prints them."""
    module = types.ModuleType("__main__")
    module.__dict__.update(known)
    sys.modules["__main__"] = module
    sys.argv = [name]
    random.seed(0)  # so that the same program does the same again
    linecache.cache[name] = (len(source), None, source.splitlines(True), name)
    try:
        code = compile(source, name, "exec", dont_inherit=True)
        os.write(NOTE, BUILT)
        os.close(NOTE)
        exec(code, module.__dict__)
    except SystemExit as error:
        return module.__dict__, _exit_code(error)
    except BaseException as error:
        error.__traceback__ = error.__traceback__ and error.__traceback__.tb_next  # this function's frame
        traceback.print_exception(error)
        return module.__dict__, 1
    return module.__dict__, 0


def _exit_code(error: SystemExit) -> int:
    if error.code is None or isinstance(error.code, int):
        return (error.code or 0) & 255
    print(error.code, file=sys.stderr)
    return 1


def _leave(code: int) -> None:
    """As the interpreter ends, without taking itself apart."""
    try:
        for thread in threading.enumerate():
            if thread is not threading.main_thread() and not thread.daemon:
                thread.join()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        code = code or 1
    os._exit(code)


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
    "dict": lambda items: {_plain(key): _plain(value) for key, value in items},
    "float": float,
    "complex": complex,
    "bytes": bytes.fromhex,
    "object": lambda given: _made(*given),
}


def _made(name: str, attributes: dict[str, Any]) -> Any:
    """An object of a class that this side itself defines under that name; nothing of the other's is run."""
    kind = vars(sys.modules["__main__"]).get(name)
    if not (isinstance(kind, type) and kind.__module__ == "__main__"):
        raise TypeError(f"no class {name} here")
    made: Any = object.__new__(kind)
    made.__dict__.update({key: _plain(value) for key, value in attributes.items()})
    return made


def _written(value: Any) -> Any:
    """Plain data as JSON, and objects of the script's own classes. Raises TypeError for anything else."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, list):
        return list(map(_written, value))
    if isinstance(value, (float, complex)):
        return {type(value).__name__: repr(value)}
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if isinstance(value, dict):
        return {"dict": [[_written(key), _written(item)] for key, item in value.items()]}
    for kind in (tuple, set, frozenset):
        if isinstance(value, kind):
            return {kind.__name__: list(map(_written, value))}
    if type(value).__module__ == "__main__" and hasattr(value, "__dict__"):
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
