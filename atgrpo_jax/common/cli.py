"""Starts and ends all entry points in the same way, and reports their errors."""

import errno
import importlib.metadata
import importlib.util
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from absl import app, flags, logging

from atgrpo_jax.common.errors import ConfigError, Stopped, UserError
from atgrpo_jax.common.stopping import Stopping

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # nothing more can be written


def gin_flags() -> tuple[flags.FlagHolder, flags.FlagHolder]:
    """Defines --gin_file and --gin_param, for entry points that read a config."""
    return (
        flags.DEFINE_string(
            "gin_file", None, "The run's gin file, from the working directory or the shipped ones."
        ),
        flags.DEFINE_multi_string(
            "gin_param", [], 'A further binding, e.g. "experiment.Experiment.steps = 20". Repeatable.'
        ),
    )


def run_main(main: Callable[[list[str]], None]) -> None:
    """Runs an entry point. Errors that a person can act on become one line and exit code 2.

    A stop by a signal exits with 128 + the signal's number, as shells report it.
    """
    app.run(lambda argv: guarded(main, argv))


def refuse_arguments(argv: list[str]) -> None:
    """Raises ConfigError for words on the command line that belong to no flag."""
    if len(argv) > 1:
        raise ConfigError(f"unexpected argument {argv[1]!r}; see --help")


def guarded(main: Callable[[list[str]], None], argv: list[str]) -> None:
    """Runs ``main`` as ``run_main`` does. Returns if it does, else exits with a code above 0."""
    look_for_no_missing_tpu()
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.ERROR)  # Orbax logs every step, and warns of our own settings
    try:
        with Stopping():
            main(argv)
    except Stopped as stopped:
        _leave(stopped.note, stopped.signum)
    except KeyboardInterrupt:
        _leave("stopped at once, by a second signal; what is on disk is whole", signal.SIGINT)
    except UserError as error:
        _fail(str(error))
    except OSError as error:
        if error.filename is None and error.errno not in _FULL:
            raise
        what = "write" if error.errno in _FULL else "use"
        _fail(f"cannot {what} {error.filename or 'a file'}: {error.strerror}")
    except MemoryError as error:
        _fail(f"out of memory {error}".rstrip())
    except SystemExit as error:
        if error.code not in (None, 0):
            raise
        raise RuntimeError("something called sys.exit() before the end; the run is not finished") from error


def _fail(line: str) -> NoReturn:
    print(f"error: {line}", file=sys.stderr)
    sys.exit(2)


def _leave(note: str, signum: int) -> NoReturn:
    """Ends the process at once, without the interpreter's own cleaning up.

    Devices may still compute what they were given before the stop, and JAX has crashed (SIGSEGV)
    when the interpreter shut down meanwhile.
    """
    print(note, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(128 + signum)


def look_for_no_missing_tpu() -> None:
    """Keeps JAX from looking for a TPU where libtpu is installed for its compiler alone.

    JAX would find none, and print five lines with an error among them. Nothing changes if
    ``jax_platforms`` is already set (by JAX because it saw a TPU, or by a person), if the plugin of
    another accelerator is installed, or if JAX is not imported yet.
    """
    jax = sys.modules.get("jax")
    if jax is None or jax.config.jax_platforms is not None:
        return
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    if importlib.util.find_spec("libtpu") and not plugins:
        jax.config.update("jax_platforms", "cpu")
