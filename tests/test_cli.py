"""What becomes of an exception of an entry point; help, flags and words on the command line."""

import ast
import errno
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

from atgrpo_jax.common.cli import gin_files, guarded, needed_gin_files, typed
from atgrpo_jax.common.errors import RunError

ROOT = Path(__file__).parents[1]


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


COMMANDS = {
    "train": {"gin_file", "gin_param", "run_dir", "hosts", "host", "coordinator", "heartbeat", "patience",
              "other_hosts", "changed_code", "gather", "lockstep", "from", "from_step", "change", "compiled"},
    "evaluate": {"gin_file", "gin_param", "run_dir", "step", "model", "base", "against", "split",
                 "instances", "episodes", "temperature", "swap", "mesh", "compiled"},
    "export": {"run_dir", "out", "step", "merge", "dtype", "mesh"},
    "plan": {"gin_file", "gin_param", "mesh", "device", "device_gb", "preset", "compile", "utilisation",
             "hosts", "answer", "sigma"},
    "compare": {"out", "curve", "step"},
    "config": {"gin_file", "gin_param", "describe"},
    "influence": {"run_dir", "step", "split", "instances", "temperature", "mesh", "compiled"},
    "runs": set(),
    "replay": {"run_dir", "node", "random", "seed", "temperature", "execute", "say", "taught", "mesh",
               "compiled"},
    "report": {"run_dir", "out", "step", "text", "watch", "every", "episodes", "mb"},
    "study": {"study_dir", "at_once"},
    "tools.budget": {"gin_file", "gin_param", "steps", "trace", "compiled"},
    "tools.check_task": {"gin_file", "gin_param", "instances", "bound", "digests"},
    "tools.model_folder": {"name", "out"},
    "tools.new_task": set(),
    "tools.prepare": {"source", "out"},
    "tools.probe": {"size", "out", "bucket", "hosts", "host", "coordinator", "only_rounds"},
}  # fmt: skip
# Asks each command for help, as python -m does; all of them import JAX once.
ASK = """
import os, runpy, sys
import atgrpo_jax.run.team_learner, atgrpo_jax.tools.contract
for command in sys.argv[1:]:
    if os.fork() == 0:
        sys.stdout = open(command, "w")
        sys.argv = [command, "--help"]
        try:
            runpy.run_module(f"atgrpo_jax.{command}", run_name="__main__", alter_sys=True)
        except SystemExit as ended:
            sys.stdout.close()
            os._exit(ended.code or 0)
        os._exit(3)
    assert os.wait()[1] == 0, command
"""


@pytest.fixture(scope="module")
def helps(tmp_path_factory):
    folder = tmp_path_factory.mktemp("help")
    path = os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))
    subprocess.run([sys.executable, "-c", ASK, *COMMANDS], cwd=folder, env=os.environ | {"PYTHONPATH": path},
                   check=True)  # fmt: skip
    return {command: (folder / command).read_text() for command in COMMANDS}


def test_every_command_is_asked():
    modules = [path for folder in ("", "tools/") for path in (ROOT / "atgrpo_jax").glob(f"{folder}*.py")]
    commands = (path for path in modules if "run_main(" in path.read_text())
    names = (path.relative_to(ROOT / "atgrpo_jax").with_suffix("") for path in commands)
    assert {".".join(name.parts) for name in names} == set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_all_flags_each_with_an_example(command, helps):
    about, _, listed = helps[command].partition("\nFlags:\n")
    assert f"python -m atgrpo_jax.{command} " in about
    blocks = re.split(r"^  --(\w+)$", listed, flags=re.MULTILINE)[1:]
    found = dict(zip(blocks[::2], blocks[1::2], strict=True))
    assert set(found) == COMMANDS[command]
    for name, text in found.items():
        assert f"E.g. --{name}" in " ".join(text.split()), name
    assert max(map(len, listed.splitlines()), default=0) <= 92


def test_a_wrong_word_or_flag_is_one_line_and_code_2():
    for words, says in (
        (["plan"], "error: unexpected argument 'plan', which is no gin file; see --help\n"),
        (["--gin_fil=x"], "error: Unknown command line flag 'gin_fil'. Did you mean: gin_file; see --help\n"),
        ([], "error: --gin_file is missing, e.g. --gin_file=plan.gin; or name a run, with --run_dir\n"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "atgrpo_jax.train", *words], cwd=ROOT, capture_output=True, text=True
        )
        assert (done.returncode, done.stderr) == (2, says)


def test_files_are_those_of_the_flag_and_then_the_words():
    flag = types.SimpleNamespace(value=["a.gin", "b.gin"])
    assert gin_files(["train", "c.gin"], flag) == ["a.gin", "b.gin", "c.gin"]
    assert needed_gin_files(["train", "c.gin"], types.SimpleNamespace(value=[])) == ["c.gin"]


def test_whoever_reads_no_further_is_no_fault():
    program = (
        "from atgrpo_jax.common.cli import run_main\n"
        "run_main(lambda argv: [print('a line', flush=True) for _ in range(100000)])"
    )
    command = f'{sys.executable} -c "$PROGRAM" | head -1; echo ${{PIPESTATUS[0]}}'
    done = subprocess.run(
        ["bash", "-c", command], env=os.environ | {"PROGRAM": program}, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("a line\n141\n", "")


def test_a_pipe_to_somebody_else_that_breaks_is_a_fault():
    program = (
        "import os\n"
        "from atgrpo_jax.common.cli import run_main\n"
        "def main(argv):\n"
        "    theirs, ours = os.pipe()\n"
        "    os.close(theirs)\n"
        "    os.write(ours, b'x')\n"
        "run_main(main)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1 and "BrokenPipeError" in done.stderr


def test_what_a_person_is_told_to_type_starts_this_python(tmp_path, monkeypatch):
    """Two environments whose Pythons are links to the same file, with other packages."""
    for name in ("one/bin/python", "one/bin/python3", "other/bin/python"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).symlink_to(os.path.realpath(sys.executable))
    monkeypatch.chdir(tmp_path)

    def command(running, path):
        monkeypatch.setattr(sys, "executable", str(tmp_path / running))
        monkeypatch.setenv("PATH", str(tmp_path / path))
        return typed("atgrpo_jax.train")

    assert command("one/bin/python", "one/bin") == "python -m atgrpo_jax.train"
    assert command("one/bin/python3", "one/bin") == "python -m atgrpo_jax.train"
    assert command("one/bin/python", "other/bin") == "one/bin/python -m atgrpo_jax.train"
    assert command("one/bin/python", "nothing") == "one/bin/python -m atgrpo_jax.train"
    monkeypatch.chdir(tmp_path / "other" / "bin")
    assert command("other/bin/python", "one/bin") == "./python -m atgrpo_jax.train"
    (tmp_path / "a b").symlink_to(tmp_path / "one")
    monkeypatch.chdir(tmp_path)
    assert command("a b/bin/python", "other/bin") == "'a b/bin/python' -m atgrpo_jax.train"
    monkeypatch.setattr(sys, "executable", "/bin/python")
    assert typed("pytest") == "/bin/python -m pytest"  # shorter than the way there from here


def test_no_text_but_docstrings_says_which_python_by_itself():
    for path in (ROOT / "atgrpo_jax").rglob("*.py"):
        tree = ast.parse(path.read_text())
        about = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        texts = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in about)
        said = [node.lineno for node in texts if isinstance(node.value, str) and "python -m " in node.value]
        assert not said or path.name == "cli.py", (path, said)
