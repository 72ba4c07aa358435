"""Writes and reads the files of a run. All but the growing ones appear whole or not at all."""

import fcntl
import gzip
import itertools
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from atgrpo_jax.common.errors import RunError
from atgrpo_jax.common.files import (
    Place,
    folder_path,
    is_file,
    make_folder,
    names_in,
    naming,
    partial_of,
    read_file,
    read_json_lines,
    remove_file,
    write_atomically,
)
from atgrpo_jax.common.progress import counted
from atgrpo_jax.run import episodes, kept_files, lease
from atgrpo_jax.run.kept_source import FOLDER
from atgrpo_jax.run.lease import Lease

_EPISODES = re.compile(r"step_([0-9]{6,})(?:\.([a-z]+))?\.jsonl\.gz")
_PARTIAL = re.compile(rf"\.{_EPISODES.pattern}\.partial")


class RunFolder:
    """The folder of one run, on a disk or in a bucket. It has the paths of all its files.

    config.gin  metrics.jsonl  tensorboard/  trackers/  checkpoints/
    kept/ (files that it reads)  code/ (your modules)  environment.jsonl (with what, on which machine)
    origin.json (of a fork: what it began from)
    changes.jsonl (settings that changed on the way)  configs/ (config.gin before each change)
    episodes/step_*.jsonl.gz (of training), episodes/step_*.SPLIT.jsonl.gz (of evaluations)
    summary.json  curves.png  report.html  best.json (the best checkpoint, if it is kept)
    evaluations.jsonl (later ones, a line each)  evaluations/ (their episodes)
    influence.jsonl (what roles' words changed, a line for each time that it was measured)
    replays/*.jsonl.gz (episodes that were played on in another way)  taught/*.jsonl.gz (by a step)
    hosts.jsonl (on how many hosts, and which mesh)  partners/*.jsonl (what partners answered)
    """

    def __init__(self, path: str | os.PathLike):
        """Sets the paths. Raises RunError if no folder can have that name."""
        try:
            self.path = folder_path(path)
        except ValueError as error:
            raise RunError(f"run_dir {os.fspath(path)!r} {error}; give another --run_dir") from error
        self.config = self.path / "config.gin"
        self.origin = self.path / "origin.json"  # see origin.py
        self.changes = self.path / "changes.jsonl"  # see changes.py
        self.configs = self.path / "configs"
        self.metrics = self.path / "metrics.jsonl"
        self.episodes = self.path / "episodes"
        self.checkpoints = self.path / "checkpoints"
        self.tensorboard = self.path / "tensorboard"
        self.trackers = self.path / "trackers"  # what trackers keep, and state.json; see tracking.py
        self.evaluations = self.path / "evaluations.jsonl"
        self.evaluated = self.path / "evaluations"
        self.influence = self.path / "influence.jsonl"
        self.shapes = self.path / "hosts.jsonl"  # see shapes.py
        self.partners = self.path / "partners"  # see partners/answers.py
        self.replays = self.path / "replays"  # see replaying/kept.py
        self.taught = self.path / "taught"
        self.best = self.path / "best.json"  # see keeping.py
        self.summary = self.path / "summary.json"
        self.curves = self.path / "curves.png"
        self.report = self.path / "report.html"
        self.kept = self.path / kept_files.FOLDER  # what it reads: problems, prompts, tokenizers
        self.environment = self.path / "environment.jsonl"  # see environment.py
        self.code = self.path / FOLDER  # source of the user's own parts
        self._lock: int | None = None  # on a disk: the open file that is locked
        self._lease: Lease | None = None  # in a bucket

    def exists(self) -> bool:
        """Returns whether it holds a run. Raises RunError if it holds something else."""
        if is_file(self.config):
            return True
        # A run that ended before it had a config may leave these.
        begun = {
            ".lock",
            partial_of(self.config).name,
            partial_of(self.origin).name,
            self.origin.name,
            lease.NAME,
            self.code.name,
            self.shapes.name,
            self.partners.name,
            self.kept.name,
        }
        no_folder = isinstance(self.path, Path) and self.path.exists() and not self.path.is_dir()
        if no_folder or names_in(self.path) - begun:
            raise RunError(
                f"{self.path} is not a run folder (no config.gin) and not empty; give another --run_dir"
            )
        return False

    def lock(self) -> None:
        """Locks the folder until ``unlock``, or until this process ends.

        Raises RunError if another process has it.
        """
        if not isinstance(self.path, Path):
            self._lease = Lease(self.path)
            self._lease.take()
            return
        make_folder(self.path)
        name = self.path / ".lock"
        self._lock = os.open(name, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            with naming(name):
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(f"another process is training in {self.path}") from None
        self.check_ours()

    def unlock(self) -> None:
        """Gives the folder back, if it was locked."""
        if self._lease is not None:
            self._lease.give_back()
            self._lease = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def check_ours(self) -> None:
        """Raises RunError if somebody has removed, replaced or taken over the folder."""
        if self._lease is not None:
            self._lease.check()
        if self._lock is None:
            return
        try:
            same = os.path.samestat(os.stat(self.path / ".lock"), os.fstat(self._lock))
        except FileNotFoundError:
            same = False
        if not same:
            raise RunError(f"{self.path} was removed or replaced while this run was going on in it")

    def read_metrics(self) -> list[dict[str, Any]]:
        """Returns the records of steps 0, 1, 2, ...

        A last line that a crash cut short is left out. Raises RunError for any other bad line.
        """
        records = read_json_lines(self.metrics)
        for step, record in enumerate(records):
            where = f"{self.metrics}, line {step + 1}"
            for name, value in record.items():
                if not _is_number(value):
                    raise RunError(f"{where}: {name!r} is no number but {str(value)[:40]!r}")
            if type(record.get("step")) is not int or record["step"] != step:
                raise RunError(f'{where}: "step" must be {step}, not {record.get("step")!r}')
        return records

    def rewind(self, step: int) -> None:
        """Removes all that was written after ``step``, so that it can be done again.

        ``step`` is -1 if the run has to start from the beginning. Raises RunError if metrics of an
        earlier step are missing, or if there are metrics but no checkpoint.
        """
        self.check_ours()  # a restore before this may have taken minutes
        records = self.read_metrics()
        if step == -1 and len(records) > 1:
            raise RunError(
                f"{self.path} has metrics of {counted(len(records) - 1, 'step')} but no checkpoint; "
                "put checkpoints/ back, or give another --run_dir"
            )
        if len(records) <= step:
            raise RunError(
                f"{self.metrics} has no line of step {len(records)}, but there is checkpoint {step}; "
                "put the file back, or give another --run_dir (evaluate and export still read this one)"
            )
        text = "".join(json.dumps(record) + "\n" for record in records[: step + 1])
        write_atomically(self.metrics, text.encode())
        for folder in (self.episodes, self.taught):
            for name in names_in(folder):
                found = _EPISODES.fullmatch(name)
                undone = _PARTIAL.fullmatch(name) or (found and int(found[1]) > step)
                if undone and is_file(folder / name):
                    remove_file(folder / name)

    def write_episodes(self, step: int, content: bytes, split: str = "train") -> None:
        """Writes what ``episodes.written`` made of a step's episodes, or of those of an evaluation."""
        self.check_ours()
        make_folder(self.episodes)
        write_atomically(self.episodes_of(step, split), content)

    def read_episodes(self, step: int, split: str = "train") -> Iterator[dict[str, Any]]:
        """Yields what is written down of a step's episodes; see ``episodes``."""
        return episodes.read(self.episodes_of(step, split))

    def kept_episodes(self) -> list[tuple[int, str]]:
        """Returns the step and the split of every file of episodes, those of later evaluations left out."""
        found = filter(None, map(_EPISODES.fullmatch, names_in(self.episodes)))
        return sorted((int(match[1]), match[2] or "train") for match in found)

    def write_evaluation(self, split: str, content: bytes) -> str:
        """Writes the episodes of a later evaluation. Returns the name of the file in evaluations/."""
        return _write_next(self.evaluated, f"_{split}.jsonl.gz", content)

    def read_evaluation(self, name: str) -> Iterator[dict[str, Any]]:
        """Yields the episodes in a file of evaluations/."""
        return episodes.read(self.evaluated / name)

    def write_replay(self, content: bytes) -> str:
        """Writes an episode that was played on in another way. Returns the name of the file in replays/."""
        return _write_next(self.replays, ".jsonl.gz", content)

    def read_replays(self) -> Iterator[dict[str, Any]]:
        """Yields all episodes that were played on in another way, in the order in which they were made."""
        for name in sorted(names_in(self.replays)):
            if name.endswith(".jsonl.gz"):
                yield from episodes.read(self.replays / name)

    def keep_config(self, content: bytes) -> str:
        """Keeps a config that is about to change. Returns the name of the file in configs/."""
        # What its own folder was is now the folder above it.
        return _write_next(self.configs, ".gin", content.replace(b"$HERE/", b"$HERE/../"))

    def taught_by(self, step: int) -> Place:
        """Returns the path of what a step taught (docs/replay.md)."""
        return self.taught / self.episodes_of(step).name

    def read_taught(self, step: int) -> list[dict[str, Any]]:
        """Returns what a step taught, a record for each candidate; nothing if nobody looked."""
        path = self.taught_by(step)
        if not is_file(path):
            return []
        return [json.loads(line) for line in gzip.decompress(read_file(path)).splitlines()]

    def episodes_of(self, step: int, split: str = "train") -> Place:
        """Returns the path of a step's episodes, or of those of its evaluation on another split."""
        return self.episodes / f"step_{step:06d}{'' if split == 'train' else f'.{split}'}.jsonl.gz"


def _write_next(folder: Place, ending: str, content: bytes) -> str:
    """Writes a file under the next free number. Returns its name."""
    make_folder(folder)
    taken = names_in(folder)
    names = (f"{number:04d}{ending}" for number in itertools.count(1))
    name = next(name for name in names if name not in taken)
    write_atomically(folder / name, content)
    return name


def _is_number(value: Any) -> bool:
    try:
        return type(value) in (int, float) and isinstance(float(value), float)
    except OverflowError:
        return False
