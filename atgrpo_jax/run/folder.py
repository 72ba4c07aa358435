"""Writes and reads the files of a run. All but the growing ones appear whole or not at all."""

import fcntl
import gzip
import io
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from atgrpo_jax.common.errors import RunError
from atgrpo_jax.common.files import (
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
from atgrpo_jax.credit.groups import Credited
from atgrpo_jax.run import lease
from atgrpo_jax.run.kept_source import FOLDER
from atgrpo_jax.run.lease import Lease
from atgrpo_jax.tokens.tokens import Tokenizer

_EPISODES = re.compile(r"step_([0-9]{6,})\.jsonl\.gz")
_PARTIAL = re.compile(rf"\.{_EPISODES.pattern}\.partial")


class RunFolder:
    """The folder of one run, on a disk or in a bucket. It has the paths of all its files.

    config.gin  metrics.jsonl  tensorboard/  episodes/step_*.jsonl.gz  checkpoints/  code/
    summary.json  curves.png  evaluations.jsonl (a line for each later evaluation)
    hosts.jsonl (on how many hosts, and which mesh)
    """

    def __init__(self, path: str | os.PathLike):
        """Sets the paths. Raises RunError if no folder can have that name."""
        try:
            self.path = folder_path(path)
        except ValueError as error:
            raise RunError(f"run_dir {os.fspath(path)!r} {error}; give another --run_dir") from error
        self.config = self.path / "config.gin"
        self.metrics = self.path / "metrics.jsonl"
        self.episodes = self.path / "episodes"
        self.checkpoints = self.path / "checkpoints"
        self.tensorboard = self.path / "tensorboard"
        self.evaluations = self.path / "evaluations.jsonl"
        self.shapes = self.path / "hosts.jsonl"  # see shapes.py
        self.summary = self.path / "summary.json"
        self.curves = self.path / "curves.png"
        self.code = self.path / FOLDER  # source of parts that a notebook or script defined
        self._lock: int | None = None  # on a disk: the open file that is locked
        self._lease: Lease | None = None  # in a bucket

    def exists(self) -> bool:
        """Returns whether it holds a run. Raises RunError if it holds something else."""
        if is_file(self.config):
            return True
        # A run that ended before it had a config may leave these.
        begun = {".lock", partial_of(self.config).name, lease.NAME, self.code.name, self.shapes.name}
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
        records = self.read_metrics()
        if step == -1 and len(records) > 1:
            raise RunError(
                f"{self.path} has metrics of {len(records) - 1} steps but no checkpoint; "
                "put checkpoints/ back, or give another --run_dir"
            )
        if len(records) <= step:
            raise RunError(
                f"{self.metrics} has no line of step {len(records)}, but there is checkpoint {step}; "
                "put the file back, or give another --run_dir (evaluate and export still read this one)"
            )
        text = "".join(json.dumps(record) + "\n" for record in records[: step + 1])
        write_atomically(self.metrics, text.encode())
        for name in names_in(self.episodes):
            found = _EPISODES.fullmatch(name)
            undone = _PARTIAL.fullmatch(name) or (found and int(found[1]) > step)
            if undone and is_file(self.episodes / name):
                remove_file(self.episodes / name)

    def write_episodes(self, step: int, credited: Sequence[Credited], tokenizer: Tokenizer) -> None:
        """Writes episodes/step_NNNNNN.jsonl.gz: one line for each group, in the order played.

        The same groups always give the same bytes.
        """
        buffer = io.BytesIO()
        # Other hosts wait meanwhile: level 9 would take eight times as long and save a fifth.
        with gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0, compresslevel=1) as file:
            for item in credited:
                file.write(json.dumps(_group_record(item, tokenizer)).encode() + b"\n")
        self.check_ours()
        make_folder(self.episodes)
        write_atomically(self.episodes / f"step_{step:06d}.jsonl.gz", buffer.getvalue())

    def read_episodes(self, step: int) -> Iterator[dict[str, Any]]:
        data = read_file(self.episodes / f"step_{step:06d}.jsonl.gz")
        for line in gzip.decompress(data).splitlines():
            yield json.loads(line)


def _is_number(value: Any) -> bool:
    try:
        return type(value) in (int, float) and isinstance(float(value), float)
    except OverflowError:
        return False


def _group_record(item: Credited, tokenizer: Tokenizer) -> dict[str, Any]:
    group = item.group
    origin = item.group.origin
    key = origin.key
    return {
        "step": key.step,
        "split": key.split,
        "instance": key.instance,
        "episode": key.episode,
        "turn": key.turn,
        "stage": key.stage,
        "role": key.role,
        "seat": key.seat,
        "policy": origin.policy,
        "version": origin.version,
        "temperature": origin.sampling.temperature,
        "state": origin.state_digest,
        "prompt": tokenizer.decode(origin.prompt_ids),
        "prompt_ids": origin.prompt_ids,
        "executed": group.chosen,
        "candidates": [
            {
                "text": c.text,
                "tokens": c.sample.tokens,
                "logprobs": c.sample.logprobs,
                "drawn_logprobs": c.sample.drawn_logprobs,
                "finish": c.sample.finish,
                "outcome": c.outcome.value,
                "team": c.reward.team if c.reward else None,
                "local": c.reward.local if c.reward else None,
                "parts": dict(c.reward.parts) if c.reward else None,
                "advantage": float(advantage),
                "trained": bool(trained),
            }
            for c, advantage, trained in zip(group.candidates, item.advantages_K, item.mask_K, strict=True)
        ],
    }
