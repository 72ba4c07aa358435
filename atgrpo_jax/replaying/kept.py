"""Writes replays and what steps taught beside a run's episodes, and reads them."""

import gzip
import json
from collections.abc import Mapping
from typing import Any

from atgrpo_jax.common.files import make_folder, write_atomically
from atgrpo_jax.replaying.again import Change, Replayed
from atgrpo_jax.replaying.differing import Finding
from atgrpo_jax.replaying.taught import Place, Taught
from atgrpo_jax.run.episodes import written
from atgrpo_jax.run.experiment import Experiment
from atgrpo_jax.run.folder import RunFolder
from atgrpo_jax.run.nodes import Node


def recorded_replay(
    node: Node, change: Change, replayed: Replayed, found: list[Finding], experiment: Experiment
) -> dict[str, Any]:
    """Returns a replay as a record of an episode, with a field ``replay`` that says what was changed."""
    content = written(node.step, [replayed.episode], (), experiment.tokenizer, experiment.alphas)
    record = json.loads(gzip.decompress(content))
    about = {
        "node": str(node),
        "temperature": change.temperature,
        "executes": change.executes,
        "says": change.says,
        "findings": [finding.words for finding in found],
    }
    return record | {"replay": about}


def write_replay(folder: RunFolder, record: Mapping[str, Any]) -> str:
    """Returns the name of the file."""
    return folder.write_replay(gzip.compress(json.dumps(record).encode() + b"\n", 1, mtime=0))


def write_taught(folder: RunFolder, step: int, taught: Mapping[Place, Taught]) -> None:
    """Writes what a step taught: a line for each candidate."""
    lines = []
    for (key, k), own in taught.items():
        line = {
            "instance": key.instance, "episode": key.episode, "turn": key.turn, "stage": key.stage,
            "speaker": key.speaker, "k": k,
            "after": [float(x) for x in own.after], "weight": [float(x) for x in own.weight],
        }  # fmt: skip
        lines.append(json.dumps(line))
    make_folder(folder.taught)
    write_atomically(folder.taught_by(step), gzip.compress("\n".join(lines).encode() + b"\n", 1, mtime=0))
