"""Keeps a run folder in a bucket for one process at a time, as a lock does on a disk.

The lease is an object that its holder writes anew every few seconds. Each write asks for the generation
of the one before, so two processes never both hold it. It is void if nobody has written it for a while.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from etils import epath

from atgrpo_jax.common import buckets
from atgrpo_jax.common.buckets import Changed
from atgrpo_jax.common.errors import RunError, Unreachable
from atgrpo_jax.common.progress import say

NAME = ".lease"
RENEW_S = 10.0
SURE_S = 40.0  # a holder whose last renewal is older renews first before it trusts its lease
VOID_S = 60.0  # after which others may take it; longer than SURE_S and a slow write together


class Lease:
    """The lease of a run folder. Its times can be given, so that tests need not wait."""

    def __init__(
        self, folder: epath.Path, renew_s: float = RENEW_S, sure_s: float = SURE_S, void_s: float = VOID_S
    ):
        self._folder = folder
        self._path = folder / NAME
        self._renew_s = renew_s
        self._sure_s = sure_s
        self._void_s = void_s
        self._record = _this_process() | {"token": uuid.uuid4().hex}
        self._generation = 0
        self._renewed = 0.0  # by ``_now``
        self._lost_to: str | None = None
        self._renewing = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep_on, name="lease", daemon=True)

    def take(self) -> None:
        """Takes the lease, and renews it until ``give_back``. Raises RunError if another run has it.

        If another process did not give it back, this waits until it is void.
        """
        while not self._taken(generation=0):
            seen = self._other()
            if seen is None:
                continue
            holder, generation = seen
            if (_is_dead(holder) or self._is_void(holder, generation)) and self._taken(generation):
                break
        self._thread.start()

    def check(self) -> None:
        """Raises RunError if another process has taken the lease over."""
        if _now() - self._renewed > self._sure_s:
            self._renew()
        if self._lost_to is not None:
            raise RunError(
                f"{self._folder}: {self._lost_to} has taken this run over, because this process did not "
                f"renew its lease for {self._void_s:.0f} s; nothing more is written from here"
            )

    def give_back(self) -> None:
        """Removes the lease, if it is still ours, so that the next process need not wait."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        if self._generation and self._lost_to is None:
            with contextlib.suppress(Changed, Unreachable):  # it becomes void by itself
                buckets.remove(self._path, self._generation)

    def _taken(self, generation: int) -> bool:
        with contextlib.suppress(Changed):
            self._write(generation)
            return True
        return False

    def _write(self, generation: int) -> None:
        began = _now()
        self._generation = buckets.write(self._path, json.dumps(self._record).encode(), generation)
        self._renewed = began

    def _other(self) -> tuple[dict[str, Any], int] | None:
        """Returns what the lease says and its generation, or None if it is gone."""
        try:
            data, generation = buckets.read_version(self._path)
        except FileNotFoundError:
            return None
        try:
            return json.loads(data), generation
        except ValueError as error:
            raise RunError(f"{self._path} is no lease of a run; give another --run_dir") from error

    def _is_void(self, holder: dict[str, Any], generation: int) -> bool:
        """Waits, and returns whether the lease became void. Raises RunError if it is renewed."""
        say(
            f"{self._folder} is held by {_name(holder)}; waiting up to {self._void_s:.0f} s to see "
            "whether it is alive"
        )
        began = time.monotonic()
        while time.monotonic() - began < self._void_s:
            time.sleep(self._renew_s / 5)
            seen = self._other()
            if seen is None:
                return False  # it was given back
            if seen[1] != generation:
                raise RunError(
                    f"{_name(seen[0])} is training in {self._folder}; wait for it, or give another --run_dir"
                )
        return True

    def _keep_on(self) -> None:
        while not self._ended.wait(self._renew_s):
            with contextlib.suppress(RunError):  # ``check`` tries again, and reports it
                self._renew()

    def _renew(self) -> None:
        with self._renewing:
            while self._lost_to is None:
                with contextlib.suppress(Changed):
                    self._write(self._generation)
                    return
                seen = self._other()
                if seen is None or seen[0].get("token") != self._record["token"]:
                    self._lost_to = "somebody" if seen is None else _name(seen[0])
                else:
                    self._generation = seen[1]  # a write had succeeded, and its answer was lost


def _now() -> float:
    """Returns the seconds of a clock that also goes on while the machine is suspended."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _this_process() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "place": _pid_place(),
    }


def _pid_place() -> str:
    """Returns where this machine's process numbers mean what they mean here: boot and namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # no Linux
        return ""


def _is_dead(holder: dict[str, Any]) -> bool:
    """Returns whether a holder is a process of this machine that has ended."""
    here = _pid_place()
    return bool(here) and holder.get("place") == here and not Path(f"/proc/{holder.get('pid')}").exists()


def _name(holder: dict[str, Any]) -> str:
    return f"process {holder.get('pid')} on {holder.get('host')} (since {holder.get('since')})"
