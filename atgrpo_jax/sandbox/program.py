"""Runs one program in a child of the sandbox's worker, after the child has given up its rights."""

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
from collections.abc import Callable
from typing import Any

from atgrpo_jax.sandbox import plain_data

# Written to NOTE.
READY = b"."  # rights are given up
BUILT = b"built"  # the source is valid Python
NOTE = 3  # descriptor of a file that is written before the program runs, and so not by the program
GONE = 86  # exit code of a harness whose program has ended
UNWRITTEN = 120  # exit code of Python if it cannot write a program's output
_GIVEN = 4  # descriptor of the task: the source and its settings, as JSON
# Descriptors between a program and its harness.
_ASKED = 5  # to read from
_TOLD = 6  # to write to
# The names that modules had before the program, which may have changed them.
_STARTED: dict[types.ModuleType, dict[str, Any]] = {}


def run() -> None:
    """Runs a program as Python runs a script, with its exit code, and ends this process."""
    _leave(_execute(_begin(_given(), "program.py"), "program.py", {})[1] or 0)


def serve() -> None:
    """Runs a program, then calls its functions as its harness asks, and ends when the harness ends.

    It ends at once if the program does not run to its end.
    """
    try:
        module, code = _execute(_begin(_given(), "program.py"), "program.py", {})
        if code is not None:
            return
        with os.fdopen(_ASKED, encoding="utf-8") as asked:
            for line in asked:
                _tell(_answer(json.loads(line), module))
    finally:
        os._exit(1)  # skips everything that the program has registered for its end


def check() -> None:
    """Runs a harness, in which each of ``names`` is a function of the served program, and ends."""
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
        result = function(
            *map(plain_data.plain, call["args"]), **{k: plain_data.plain(v) for k, v in call["named"].items()}
        )
        return {"result": plain_data.written(result)}
    except BaseException as error:
        return {"error": f"{type(error).__name__}: {error}"[:500]}


def _begin(given: dict[str, Any], name: str) -> str:
    """Makes the module of a script, runs ``before`` in it, and returns the script's source."""
    module: Any = types.ModuleType(given["name"])
    module.__builtins__ = builtins
    module.__annotations__ = {}
    module.__file__ = os.path.abspath(name)
    module.__cached__ = None
    sys.modules["__main__"] = sys.modules[given["name"]] = module
    sys.argv = [name]
    for words in (site.setquit, site.setcopyright, site.sethelper):  # workers start without site
        words()
    _STARTED.update({module: dict(vars(module)) for module in (builtins, sys)})
    random.seed(0)  # makes a program do the same each time
    if given["before"]:
        exec(compile(given["before"], "before.py", "exec", dont_inherit=True), module.__dict__)
    return given["source"].removeprefix("\ufeff")


def _execute(source: str, name: str, known: dict[str, Any]) -> tuple[dict[str, Any], int | None]:
    """Runs a source. Returns its names and its exit code, which is None if it ran to its end.

    Its exceptions are printed as Python prints them.
    """
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
        # The first frame of the traceback is this function's: it is left out.
        error.__traceback__ = error.__traceback__ and error.__traceback__.tb_next
        _print(error)
        return module.__dict__, 1
    return module.__dict__, None


def _print(error: BaseException) -> None:
    """Prints an exception with the program's own hook, if it has one.

    Python's own hook would look for the source in a file.
    """
    if sys.excepthook is sys.__excepthook__:
        traceback.print_exception(error)
    else:
        sys.excepthook(type(error), error, error.__traceback__)


def _future(module: types.ModuleType) -> int:
    """Returns the flag for ``compile`` if ``before`` has imported ``annotations`` from __future__.

    So the source is compiled as if it were one text with ``before``.
    """
    asked = vars(module).get("annotations")
    return __future__.annotations.compiler_flag if asked is __future__.annotations else 0


def _exit_code(error: SystemExit) -> int:
    if error.code is None or isinstance(error.code, int):
        code = error.code or 0
        return code & 255 if abs(code) < 1 << 63 else 255
    print(error.code, file=sys.stderr)
    return 1


def _leave(code: int) -> None:
    """Ends the process as the interpreter ends a program.

    It waits for threads, calls the program's atexit functions, then deletes the objects that are
    left. All of these may still print. It does not take down the interpreter itself, which takes
    five times as long.
    """
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        code = _flush() or code
        gc.collect()  # orders objects before the objects that they hold: streams before their files
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
    """Flushes the standard streams. Returns UNWRITTEN if one of them cannot be written, else 0."""
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
        given = {
            "args": list(map(plain_data.written, args)),
            "named": {k: plain_data.written(v) for k, v in named.items()},
        }
        try:
            _tell({"name": name} | given)
            line = answers.readline()
        except BrokenPipeError:
            line = ""
        if not line:  # the program is gone; a test might expect an exception, so none is raised
            sys.stdout.flush()
            os._exit(GONE)
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"{name}: {answer['error']}")
        return plain_data.plain(answer["result"])

    call.__name__ = name
    return call


def _tell(message: dict[str, Any]) -> None:
    data = json.dumps(message).encode() + b"\n"
    while data:
        data = data[os.write(_TOLD, data) :]
