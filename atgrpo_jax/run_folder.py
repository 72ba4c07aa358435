"""What a run leaves on disk. Every file but the growing metrics.jsonl appears whole or not at all."""

import fcntl
import gzip
import io
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from atgrpo_jax.errors import RunError
from atgrpo_jax.groups import Credited
from atgrpo_jax.tokens import Tokenizer


class RunFolder:
    """Paths and writers of one run.

    config.gin  metrics.jsonl  tensorboard/  episodes/step_*.jsonl.gz  checkpoints/
    summary.json  curves.png  evaluations.jsonl (of later evaluations)
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path).expanduser().absolute()
        self.config = self.path / "config.gin"
        self.metrics = self.path / "metrics.jsonl"
        self.episodes = self.path / "episodes"
        self.checkpoints = self.path / "checkpoints"
        self.tensorboard = self.path / "tensorboard"
        self.evaluations = self.path / "evaluations.jsonl"
        self.summary = self.path / "summary.json"
        self.curves = self.path / "curves.png"

    def exists(self) -> bool:
        """Whether it holds a run. Raises RunError if it holds something else."""
        if self.config.is_file():
            return True
        if self.path.exists() and (
            not self.path.is_dir() or any(p.name != ".lock" for p in self.path.iterdir())
        ):
            raise RunError(
                f"{self.path} is not a run folder (no config.gin) and not empty; give another --run_dir"
            )
        return False

    def lock(self) -> None:
        """Makes the folder this process's until it ends. Raises RunError if a live one holds it."""
        self.path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(f"another process is training in {self.path}") from None

    def read_metrics(self) -> list[dict[str, Any]]:
        """All records. A last line cut short by a crash is left out; any other bad line is a RunError."""
        if not self.metrics.exists():
            return []
        lines = self.metrics.read_text().split("\n")
        records = []
        for number, line in enumerate(lines[:-1], start=1):
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise RunError(f"{self.metrics}, line {number}: not JSON ({error})") from error
        return records

    def rewind(self, step: int) -> None:
        """Forgets everything after ``step``, so that it can be done again."""
        records = [record for record in self.read_metrics() if record["step"] <= step]
        text = "".join(json.dumps(record) + "\n" for record in records)
        write_atomically(self.metrics, text.encode())
        for file in self.episodes.glob(".*.partial"):
            file.unlink()
        for file in self.episodes.glob("step_*"):
            if int(file.name.removeprefix("step_").split(".")[0]) > step:
                file.unlink()

    def write_episodes(self, step: int, credited: Sequence[Credited], tokenizer: Tokenizer) -> None:
        """episodes/step_NNNNNN.jsonl.gz, a line a group in the order played; the same bytes each time."""
        buffer = io.BytesIO()
        with gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0) as file:
            for item in credited:
                file.write(json.dumps(_group_record(item, tokenizer)).encode() + b"\n")
        self.episodes.mkdir(exist_ok=True)
        write_atomically(self.episodes / f"step_{step:06d}.jsonl.gz", buffer.getvalue())

    def read_episodes(self, step: int) -> Iterator[dict[str, Any]]:
        with gzip.open(self.episodes / f"step_{step:06d}.jsonl.gz", "rt") as file:
            for line in file:
                yield json.loads(line)


def write_atomically(path: Path, data: bytes) -> None:
    """The file has either its old content or all of ``data``, even after a crash."""
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _group_record(item: Credited, tokenizer: Tokenizer) -> dict[str, Any]:
    group, origin = item.group, item.group.origin
    key = origin.key
    return {
        "step": key.step,
        "split": key.split,
        "instance": key.instance,
        "episode": key.episode,
        "turn": key.turn,
        "role": key.role,
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
