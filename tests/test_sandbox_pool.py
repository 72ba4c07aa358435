"""The pool of workers: what replaces and ends them, its levels, its limits and its settings."""

import asyncio
import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import shared_sandbox
from shared_sandbox import ADD, ASK, HELLO, SMALL, run

from atgrpo_jax.common.errors import RunError
from atgrpo_jax.sandbox import pool, process, start
from atgrpo_jax.sandbox.pool import SandboxConfig
from atgrpo_jax.sandbox.protocol import Program

# Fixtures
sandbox = shared_sandbox.sandbox


def test_programs_run_side_by_side():
    sandbox = dataclasses.replace(SMALL, workers=4).build()
    sleepers = [Program(f"import time; time.sleep(0.5); print({i})") for i in range(4)]

    async def everything():
        return await asyncio.gather(*map(sandbox.run, sleepers))

    asyncio.run(everything())  # starts the workers
    began = time.monotonic()
    found = asyncio.run(everything())
    assert [run.stdout for run in found] == ["0\n", "1\n", "2\n", "3\n"]
    assert time.monotonic() - began < 1.5
    sandbox.close()
    with pytest.raises(RuntimeError):
        asyncio.run(sandbox.run(HELLO))


def test_a_sandbox_that_is_closed_waits_for_no_program():
    sandbox = dataclasses.replace(SMALL, workers=2, wall_s=60.0).build(levels=("kernel",))
    for name in ("you", "me"):  # starts the workers
        run(sandbox, HELLO.source, name)
    with ThreadPoolExecutor() as threads:
        programs = [threads.submit(run, sandbox, "import time; time.sleep(59)") for _ in range(4)]
        while sandbox.busy < 2:
            time.sleep(0.01)
        sandbox.close()
        assert [one.result().end for one in programs] == ["crash"] * 4  # those that were waiting, too
    sandbox.close()  # again: nothing to wait for
    assert (sandbox.processes, sandbox.busy) == ([], 0)


def test_a_worker_that_dies_or_hangs_is_replaced(monkeypatch):
    monkeypatch.setattr(process, "GRACE_S", 0.5)
    sandbox = SMALL.build()
    assert sandbox.run_now(HELLO).end == "ok"
    large = Program(HELLO.source, "you" * 100_000)  # more than a pipe holds
    for sign, program in ((signal.SIGKILL, HELLO), (signal.SIGSTOP, HELLO), (signal.SIGSTOP, large)):
        (worker,) = sandbox.processes
        os.killpg(worker, sign)
        found = sandbox.run_now(program)
        assert found.end == "crash" and "a worker" in found.stderr
        assert sandbox.run_now(HELLO).end == "ok"
    assert sandbox.replaced == 3 and len(sandbox.processes) == 1
    sandbox.close()


def test_a_worker_killed_while_a_program_runs():
    sandbox = SMALL.build()
    sandbox.run_now(HELLO)
    (worker,) = sandbox.processes
    threading.Timer(0.3, lambda: os.killpg(worker, signal.SIGKILL)).start()
    assert sandbox.run_now(Program("import time; time.sleep(9)")).end == "crash"
    sandbox.close()


def test_all_ends_with_the_trainer(tmp_path):
    """Also if it is killed: workers and the programs that they run."""
    script = (
        "import threading, time\nfrom atgrpo_jax.sandbox.protocol import Program\n"
        "from atgrpo_jax.sandbox.pool import SandboxConfig\n"
        "sandbox = SandboxConfig(workers=1, wall_s=60.0).build()\n"
        "sleep = Program('import time; time.sleep(60)')\n"
        "threading.Thread(target=sandbox.run_now, args=(sleep,), daemon=True).start()\n"
        "while not sandbox.processes: time.sleep(0.05)\ntime.sleep(0.5)\n"
        "print(*sandbox.processes, flush=True)\ntime.sleep(60)\n"
    )
    trainer = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    group = int(trainer.stdout.readline())
    trainer.kill()
    trainer.communicate()
    end = time.monotonic() + 5
    while time.monotonic() < end:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail("processes of the sandbox have outlived the trainer")


def test_the_strongest_level_is_taken_and_a_machine_below_the_least_refused(monkeypatch):
    monkeypatch.setattr(pool, "missing", lambda level: "none here" if level == "namespaces" else None)
    sandbox = SMALL.build()
    assert sandbox.level == "kernel"
    sandbox.close()
    with pytest.raises(RunError, match=r"SandboxConfig.level = 'namespaces': .* \(namespaces: none here\)"):
        dataclasses.replace(SMALL, level="namespaces").build()
    monkeypatch.setattr(pool, "missing", lambda level: "none here" if level != "limits" else None)
    with pytest.raises(RunError, match="kernel: none here"):
        SMALL.build()
    sandbox = dataclasses.replace(SMALL, level="limits").build()
    assert sandbox.level == "limits" and sandbox.run_now(HELLO).end == "ok"
    sandbox.close()


def test_a_level_that_does_not_hold_is_not_taken(monkeypatch):
    """The kernel may say that it has something and not enforce it: one tries."""
    real = start.settings

    def without_files(*args):
        settings = real(*args)
        return dataclasses.replace(settings, told=settings.told | {"files": False})

    monkeypatch.setattr(start, "settings", without_files)
    with pytest.raises(RunError, match="kernel: a program could read a file"):
        SMALL.build(levels=("kernel",))


def test_a_child_that_cannot_give_up_what_it_must_runs_nothing(monkeypatch):
    """Limits below what the process has already cannot be set, say; nothing is taken for a result then."""
    sandbox = SMALL.build()
    real = start.settings

    def without_memory(*args):
        settings = real(*args)
        limits = settings.told["limits"] | {"memory": "none"}
        return dataclasses.replace(settings, told=settings.told | {"limits": limits})

    monkeypatch.setattr(start, "settings", without_memory)
    for asked in (HELLO, Program(ADD, harness=ASK + "print(1)", names=("Solution().add",))):
        found = sandbox.run_now(asked)
        assert found.end == "crash" and found.stdout == "" and "the sandbox failed" in found.stderr
    sandbox.close()


def test_packages_that_programs_may_import():
    for level in ("kernel", "namespaces") if shutil.which("bwrap") else ("kernel",):
        config = dataclasses.replace(SMALL, level=level, packages=("numpy",), memory_mb=1024)
        sandbox = config.build("import numpy; numpy.warm = 7", levels=(level,))
        source = "import numpy.polynomial; print(numpy.arange(3).sum(), numpy.warm)\nimport jax"
        found = sandbox.run_now(Program(source))
        assert found.stdout == "3 7\n" and "Error" in found.stderr.splitlines()[-1]
        sandbox.close()


@pytest.mark.parametrize(
    "field, value, source, end",
    [
        ("wall_s", 0.2, "import time; time.sleep(0.5)", "timeout"),
        ("cpu_s", 1, "import time\nwhile time.process_time() < 1.5: pass", "timeout"),
        ("memory_mb", 64, "x = bytearray(100 << 20)", "error"),
        ("output_kb", 1, "print('x' * 2000)", "limit"),
        ("open_files", 8, "import os\nx = [os.dup(0) for _ in range(12)]", "error"),
        ("threads", 1, "import threading\nt = threading.Timer(0.3, print)\nt.start()", "limit"),
    ],
)
def test_every_limit_holds_and_can_be_raised(field, value, source, end):
    roomy = SandboxConfig(workers=1, wall_s=9.0, cpu_s=5)
    for config, expected in ((roomy, "ok"), (dataclasses.replace(roomy, **{field: value}), end)):
        sandbox = config.build(levels=("kernel",))
        assert sandbox.run_now(Program(source)).end == expected
        sandbox.close()


@pytest.mark.parametrize(
    "wrong, says",
    [
        ({"level": "strong"}, "SandboxConfig.level"),
        ({"workers": -1}, "SandboxConfig.workers"),
        ({"wall_s": 0.0}, "SandboxConfig.wall_s"),
        ({"open_files": 4}, "Python itself needs 8"),
        ({"packages": ("no_such",)}, "no_such is not installed here"),
    ],
)
def test_the_config_refuses(wrong, says):
    with pytest.raises(ValueError, match=says):
        SandboxConfig(**wrong)
