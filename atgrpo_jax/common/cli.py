"""Starts and ends all entry points in the same way, and reports their errors."""

import errno
import importlib.metadata
import importlib.util
import os
import select
import shlex
import shutil
import signal
import sys
import textwrap
from collections.abc import Callable, Iterator
from typing import NoReturn, TextIO

from absl import app, flags, logging

from atgrpo_jax.common.errors import ConfigError, Stopped, UserError
from atgrpo_jax.common.stopping import Stopping

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # nothing more can be written
_HELP = ("--help", "-help", "-h", "-?", "--helpshort", "--helpfull")


def gin_flags() -> tuple[flags.FlagHolder, flags.FlagHolder]:
    """Defines --gin_file and --gin_param, for entry points that read a config."""
    return (
        flags.DEFINE_multi_string(
            "gin_file",
            [],
            "A gin file, from the working directory or the shipped ones. If it is given several times, later "
            "files win. The name alone does, too. E.g. --gin_file=plan.gin --gin_file=teams/lora.gin",
        ),
        flags.DEFINE_multi_string(
            "gin_param",
            [],
            "A value that is set after all files: module.Class.field = value. It may be given several times. "
            'E.g. --gin_param="experiment.Experiment.steps = 20"',
        ),
    )


def host_flags() -> tuple[flags.FlagHolder, flags.FlagHolder, flags.FlagHolder]:
    """Defines --hosts, --host and --coordinator, for entry points that several hosts run together."""
    return (
        flags.DEFINE_string(
            "hosts",
            None,
            "How many hosts do this together, each with one such process; auto on Cloud TPU, GKE and SLURM. "
            "Needs --host and --coordinator unless it is auto. See docs/hosts.md. E.g. --hosts=2",
        ),
        flags.DEFINE_integer("host", None, "The number of this host, from 0. E.g. --host=1"),
        flags.DEFINE_string(
            "coordinator", None, "Where host 0 listens for the others. E.g. --coordinator=10.0.0.2:8476"
        ),
    )


def compiled_flag() -> flags.FlagHolder:
    """Defines --compiled, for entry points that compile."""
    return flags.DEFINE_string(
        "compiled",
        None,
        "The folder that keeps compiled programs for later starts, or off. If it is not given, it is that of "
        "JAX_COMPILATION_CACHE_DIR, or else ~/.cache/atgrpo_jax/compiled. E.g. --compiled=off",
    )


def mesh_flag() -> flags.FlagHolder:
    """Defines --mesh, for entry points that read a run."""
    return flags.DEFINE_string(
        "mesh", None, "The devices, instead of those of the training. E.g. --mesh=data=1,fsdp=4,tensor=1"
    )


def gin_files(argv: list[str], flag: flags.FlagHolder) -> list[str]:
    """Returns the gin files of --gin_file, and then those of the words that belong to no flag.

    Raises ConfigError for other words.
    """
    for word in argv[1:]:
        if not word.endswith(".gin"):
            raise ConfigError(f"unexpected argument {word!r}, which is no gin file; see --help")
    return [*flag.value, *argv[1:]]


def needed_gin_files(argv: list[str], flag: flags.FlagHolder) -> list[str]:
    """Returns what ``gin_files`` does. Raises ConfigError if there is no file, too."""
    files = gin_files(argv, flag)
    if not files:
        raise ConfigError("--gin_file is missing, e.g. --gin_file=plan.gin")
    return files


def run_main(main: Callable[[list[str]], None]) -> None:
    """Runs an entry point. Errors that a person can act on become one line and exit code 2, or
    1 if the same command may work later.

    A stop by a signal exits with 128 + the signal's number, as shells report it.
    """
    app.run(lambda argv: guarded(main, argv), flags_parser=_words)


def typed(module: str) -> str:
    """Returns what a person types to run a module with this Python, as in ``python -m atgrpo_jax.train``.

    If ``python`` is another one in the person's shell, or none, it is the path of this one.
    """
    found = shutil.which("python")
    if found is not None and _same_python(found, sys.executable):
        return f"python -m {module}"
    folder, name = os.path.split(sys.executable)
    near = os.path.join(os.path.relpath(folder), name)
    return f"{shlex.quote(min(near, sys.executable, key=len))} -m {module}"


def _same_python(one: str, other: str) -> bool:
    """Returns whether two paths are one Python of one environment, as python and python3 are.

    Pythons of two environments may be links to the same file.
    """
    folders = (os.path.realpath(os.path.dirname(path)) for path in (one, other))
    return len(set(folders)) == 1 and os.path.realpath(one) == os.path.realpath(other)


def _words(argv: list[str]) -> list[str]:
    """Reads the flags, and returns the words that belong to none. Answers --help, and ends."""
    if set(argv[1:]) & set(_HELP):
        print("\n".join(_help(argv[0])))
        sys.exit(0)
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        _fail(f"{' '.join(str(error).split()).removesuffix(' ?')}; see --help")


def _help(program: str) -> Iterator[str]:
    """Yields the lines of an entry point's help: its docstring, and all flags of this package."""
    yield (sys.modules["__main__"].__doc__ or "").strip()
    yield "\nFlags:"
    for module, found in sorted(flags.FLAGS.flags_by_module_dict().items()):
        if module != program and not module.startswith("atgrpo_jax."):
            continue
        for flag in found:
            unset = flag.default in (None, False, [])
            default = "" if unset else f" (if it is not given: {flag.default})"
            yield f"\n  --{flag.name}"
            text = flag.help.partition(";\n")[0]  # absl adds that a flag may be repeated
            yield textwrap.fill(text + default, 92, initial_indent=" " * 6, subsequent_indent=" " * 6)


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
        _fail(str(error), error.exit_code)
    except BrokenPipeError:
        if not (unread := [stream for stream in (sys.stdout, sys.stderr) if _is_unread(stream)]):
            raise  # of a server, or of a program that has ended
        for stream in unread:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # for what is still to be flushed
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        if exit_code(error) == 1:
            raise
        what = "write" if error.errno in _FULL else "use"
        _fail(f"cannot {what} {error.filename or 'a file'}: {error.strerror}")
    except MemoryError as error:
        _fail(f"out of memory {error}".rstrip())
    except SystemExit as error:
        if error.code not in (None, 0):
            raise
        raise RuntimeError("something called sys.exit() before the end; the run is not finished") from error


def _is_unread(stream: TextIO) -> bool:
    """Returns whether a stream is a pipe that nobody reads any more, as after ``| head``."""
    poll = select.poll()
    poll.register(stream, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def exit_code(error: BaseException) -> int:
    """Returns the exit code of a process that ends with this error; see ``guarded``."""
    if isinstance(error, Stopped):
        return 128 + error.signum
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT
    if isinstance(error, UserError):
        return error.exit_code
    known = isinstance(error, MemoryError) or (
        isinstance(error, OSError) and (error.filename is not None or error.errno in _FULL)
    )
    return 2 if known else 1


def _fail(line: str, code: int = 2) -> NoReturn:
    print(f"error: {line}", file=sys.stderr)
    sys.exit(code)


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
