"""What tests of several hosts share: hosts that are threads, and real processes on this machine."""

import concurrent.futures
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np

from atgrpo_jax.common.hosts import Hosts
from atgrpo_jax.hosts.meetings import Joined
from atgrpo_jax.hosts.watcher import Watcher
from atgrpo_jax.run.saved import SavedRun

HERE = Path(__file__).parent
LENGTHS = HERE / "lengths.gin"


class Shelf:
    """A ``Store`` for threads."""

    def __init__(self):
        self.values: dict[str, bytes] = {}
        self.counts: dict[str, int] = {}
        self._changed = threading.Condition()

    def put(self, key, value):
        with self._changed:
            self.values[key] = value
            self._changed.notify_all()

    def wait(self, key, seconds):
        with self._changed:
            self._changed.wait_for(lambda: key in self.values, seconds)
            return self.values.get(key)

    def under(self, folder):
        with self._changed:
            found = {key: value for key, value in self.values.items() if key.startswith(f"{folder}/")}
        return {key.removeprefix(f"{folder}/"): value for key, value in found.items()}

    def remove(self, folder):
        with self._changed:
            for kept in (self.values, self.counts):
                for key in [key for key in kept if key.startswith(f"{folder}/")]:
                    del kept[key]

    def count(self, key):
        with self._changed:
            self.counts[key] = self.counts.get(key, 0) + 1
            return self.counts[key] - 1


class Party:
    """Hosts that are threads of this process. ``exits`` is what ended "processes" said.

    With ``lockstep``, ``done`` has for each host what it did on its "devices": "idle" and "gather".
    """

    def __init__(self, count, patience_s=30.0, heartbeat_s=30.0, lockstep=False):
        self.shelf = Shelf()
        self.exits: list[tuple[int, str, int]] = []
        self.hosts: list[Hosts] = []
        self.done: list[list[str]] = [[] for _ in range(count)]
        for index in range(count):
            note = self._noting(index)
            watcher = Watcher(self.shelf, index, count, heartbeat_s, patience_s, note)
            idle = self._idle(index) if lockstep else None
            made = Joined(self.shelf, index, count, self._gather(index), watcher, patience_s, idle)
            self.hosts.append(made)
            watcher.start()
        self.watchers = [made._watcher for made in self.hosts]

    def _noting(self, index):
        return lambda line, code: self.exits.append((index, line, code))

    def _idle(self, index):
        return lambda: lambda: self.done[index].append("idle")

    def _gather(self, index):
        def gather(data, sizes):
            self.done[index].append("gather")
            number = self.shelf.count(f"gathers of {index}")
            self.shelf.put(f"gather/{number}/{index}", data)
            found = [self.shelf.wait(f"gather/{number}/{other}", 10) for other in range(len(sizes))]
            assert [len(part) for part in found] == list(sizes)
            return found

        return lambda: gather

    def __call__(self, play):
        """Runs ``play(hosts)`` on every host. Returns what each returned or raised."""

        def one(hosts):
            try:
                return play(hosts)
            except BaseException as error:
                return error

        with concurrent.futures.ThreadPoolExecutor(len(self.hosts)) as threads:
            return list(threads.map(one, self.hosts))

    def close(self):
        for watcher in self.watchers:
            watcher.end()


def until(true, seconds=10.0):
    """Waits until something is true, and fails if that takes too long."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def free_port():
    with socket.socket() as opened:
        opened.bind(("localhost", 0))
        return opened.getsockname()[1]


def start(count, folder, *args, env=None, only=None, port=None, counted=False):
    """Starts the processes of a run, one for each host, or ``only`` one. Their output is in ``folder``.

    With ``counted``, collectives_0.txt and so on get what counted.py counts.
    """
    own = [f"--hosts={count}", f"--coordinator=localhost:{port or free_port()}", "--heartbeat=5", *args]
    started = []
    for index in range(count) if only is None else [only]:
        program = ["counted.py", folder / f"collectives_{index}.txt"] if counted else []
        output = folder / f"host_{index}.txt"
        started.append(process(output, *own, f"--host={index}", env=env, program=program))
    return started


def process(output, *args, env=None, program=()):
    """Starts ``train``, or a program beside this file, in the folder of the file that its output goes to."""
    words = [HERE / program[0], *program[1:]] if program else ["-m", "atgrpo_jax.train"]
    path = f"{HERE}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"  # for the task in lengths.py
    with open(output, "w") as file:
        return subprocess.Popen(
            [sys.executable, *words, *args],
            cwd=output.parent,
            env=os.environ | {"PYTHONPATH": path} | (env or {}),
            stdout=file,
            stderr=subprocess.STDOUT,
        )


def ended(started, seconds=400):
    """Returns the exit codes of processes that end by themselves."""
    try:
        return [process.wait(seconds) for process in started]
    finally:
        for process in started:
            process.kill()


def left(folder):
    """Returns what a run leaves: metrics that do not depend on the machine, and the bytes of episodes."""
    records = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        for name in [name for name in record if name.startswith("perf/")]:
            del record[name]
    episodes = {path.name: path.read_bytes() for path in (folder / "run" / "episodes").iterdir()}
    return records, episodes


def weights(folder):
    saved = SavedRun(str(folder / "run"))
    return [np.asarray(leaf) for leaf in jax.tree.leaves(saved.weights(saved.newest()))]
