"""SGLang servers that a run starts and ends itself, and the loop in which it speaks to them."""

import asyncio
import importlib.util
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import shared_sglang
from scripted_server import ScriptedServer
from shared_sglang import wait

from atgrpo_jax.common.errors import RunError
from atgrpo_jax.engines.sglang import processes, sglang
from atgrpo_jax.engines.sglang.background import Background
from atgrpo_jax.engines.sglang.processes import ServerProcess

# Fixtures
folder = shared_sglang.folder
server = shared_sglang.server
make = shared_sglang.make


def test_a_command_that_cannot_start_a_server_is_refused_at_once(make):
    with pytest.raises(RunError, match="'nosuch --flag': there is no such program"):
        make(command="nosuch --flag")
    with pytest.raises(RunError, match="No closing quotation"):
        make(command="sh -c 'x")
    with pytest.raises(RunError, match="has --api-key: everybody reads it"):
        make(command="python -m sglang.launch_server --api-key=s3cret")
    with pytest.raises(RunError, match=r"launch/nosuch.sh is no file in /"):
        make(command="bash launch/nosuch.sh")
    with pytest.raises(RunError, match=r'no sglang to start .* with: pip install "atgrpo_jax\[sglang\]"'):
        make()


@pytest.mark.parametrize(
    ("python", "command"),
    [("/usr/bin/python3", "/usr/bin/python3 -m"), ("/my project/python", "'/my project/python' -m")],
)  # fmt: skip
def test_the_command_is_of_this_python_whatever_its_path(monkeypatch, python, command):
    monkeypatch.setattr(sys, "executable", python)
    spec = importlib.util.spec_from_file_location("sglang_again", sglang.__file__)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "sglang_again", module)
    spec.loader.exec_module(module)
    found = module.SGLangConfig().command
    assert found == f"{command} sglang.launch_server"
    assert shlex.split(found) == [python, "-m", "sglang.launch_server"]


def test_a_server_that_ends_while_it_starts_shows_its_last_words(make):
    with pytest.raises(RunError, match=r"ended while it started; exit code 3; the end .*\n.*out of memory"):
        make(command="sh -c 'echo out of memory; exit 3'", start_timeout_s=20.0)


def test_a_server_of_ours_ends_with_all_it_started(tmp_path):
    process = ServerProcess(["sh", "-c", "sleep 60 & echo $!; sleep 60"], tmp_path / "log")
    wait(lambda: (tmp_path / "log").read_text().strip())
    child = int((tmp_path / "log").read_text())
    assert process.alive and there(child)
    process.stop()
    assert not process.alive and not there(child)


def test_a_server_of_ours_ends_when_we_are_killed(tmp_path):
    code = (
        "import sys, time; from pathlib import Path\n"
        "from atgrpo_jax.engines.sglang.processes import ServerProcess\n"
        "ServerProcess(['sh', '-c', 'echo $$; sleep 60'], Path(sys.argv[1])); time.sleep(60)"
    )
    log = tmp_path / "log"
    run = subprocess.Popen([sys.executable, "-c", code, str(log)])
    wait(lambda: log.exists() and log.read_text().strip())
    server = int(log.read_text())
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    wait(lambda: not there(server))


def test_a_server_of_ours_ends_when_its_leash_is_killed(tmp_path):
    """With all that it started, before anybody asks."""
    process = ServerProcess(["sh", "-c", "sleep 60 & echo $! $$; sleep 60"], tmp_path / "log")
    wait(lambda: (tmp_path / "log").read_text().strip())
    started = [int(pid) for pid in (tmp_path / "log").read_text().split()]
    os.kill(process.pid, signal.SIGKILL)
    wait(lambda: not any(map(there, started)))
    process.stop()


def test_the_end_of_a_long_log_is_shown(tmp_path):
    process = ServerProcess(["sh", "-c", "exit 3"], tmp_path / "log")
    wait(lambda: not process.alive)
    (tmp_path / "log").write_bytes(b"\xff\n" * 50_000 + b"a\x1b[2J" + b"b" * 9000 + b"\nout of memory\n")
    lines = process.last_words().splitlines()
    assert len(lines) == 1 + processes.LAST_WORDS and lines[-1].strip() == "out of memory"
    assert max(map(len, lines[1:])) < 400 and "\x1b" not in lines[-2]


def test_what_an_interrupted_caller_waited_for_is_cancelled(caplog):
    background, ends = Background(), []

    async def endless():
        try:
            await asyncio.sleep(60)
        finally:
            ends.append(True)

    signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(KeyboardInterrupt):
            background.wait(endless())
    finally:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
    background.close()
    assert ends and not caplog.records


@pytest.mark.parametrize("command", ["", "sh -c 'sleep 600'"], ids=["theirs", "ours"])
def test_who_waits_for_a_server_hears_a_stop(folder, make, command):
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    with ScriptedServer(folder) as silent:
        silent.hang()
        try:
            signal.setitimer(signal.ITIMER_REAL, 1.0)
            with pytest.raises(KeyboardInterrupt):
                make(
                    *() if command else (silent,),
                    start_timeout_s=600.0,
                    **({"command": command} if command else {}),
                )
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            silent.go_on()


def there(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")")[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
