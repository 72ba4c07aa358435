"""What becomes of an exception of an entry point."""

import errno
import os
import subprocess
import sys

import pytest

from atgrpo_jax.common.cli import guarded
from atgrpo_jax.common.errors import RunError


def ends(error, capsys):
    """The exit code and what was said."""

    def main(argv):
        raise error

    with pytest.raises(SystemExit) as raised:
        guarded(main, [])
    return raised.value.code, capsys.readouterr().err


def oserror(number, name=None):
    return OSError(number, os.strerror(number), name)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (RunError("no such step"), "error: no such step\n"),
        (oserror(errno.ENOSPC, "a"), "error: cannot write a: No space left on device\n"),
        (oserror(errno.ENOSPC), "error: cannot write a file: No space left on device\n"),
        (oserror(errno.EACCES, "a"), "error: cannot use a: Permission denied\n"),
        (oserror(errno.ENAMETOOLONG, "a"), "error: cannot use a: File name too long\n"),
        (oserror(errno.EIO, b"a"), "error: cannot use b'a': Input/output error\n"),
        (MemoryError("Unable to allocate 4 GiB"), "error: out of memory Unable to allocate 4 GiB\n"),
    ],
)
def test_errors_that_a_person_can_act_on_are_one_line_and_code_2(error, line, capsys):
    assert ends(error, capsys) == (2, line)


@pytest.mark.parametrize(
    ("raised", "code", "line"),
    [
        ("Stopped(15, 'stopped after step 3')", 143, "stopped after step 3"),
        ("KeyboardInterrupt", 130, "stopped at once, by a second signal; what is on disk is whole"),
    ],
)
def test_a_stop_is_told_by_its_code(raised, code, line):
    """In a process of its own, which it ends."""
    program = (
        "from atgrpo_jax.common.cli import guarded\n"
        "from atgrpo_jax.common.errors import Stopped\n"
        f"def main(argv):\n    raise {raised}\n"
        "guarded(main, [])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (code, f"{line}\n")


@pytest.mark.parametrize("error", [KeyError("x"), ConnectionResetError(errno.ECONNRESET, "reset")])
def test_other_errors_stay_what_they_are(error):
    def main(argv):
        raise error

    with pytest.raises(type(error)):
        guarded(main, [])


@pytest.mark.parametrize("code", [0, None])
def test_what_ends_before_its_end_does_not_end_with_0(code):
    def main(argv):
        raise SystemExit(code)

    with pytest.raises(RuntimeError, match="the run is not finished"):
        guarded(main, [])
    guarded(lambda argv: None, [])
