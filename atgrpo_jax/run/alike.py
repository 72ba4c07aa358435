"""Compares what the hosts of a run compute with: their devices, and the models and problems they read."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from atgrpo_jax.common.copies import local_folder
from atgrpo_jax.common.hosts import Hosts, check_alike
from atgrpo_jax.run.experiment import Experiment
from atgrpo_jax.tasks.data import FILES_READ


def check_machines(hosts: Hosts, experiment: Experiment, read: Mapping[str, str] = FILES_READ) -> None:
    """Raises RunError if a host has other devices than host 0, another model, other problems or templates.

    Args:
      read: digests of the files that problems were read from, by name. Those of all splits must have
        been read by now.
    """
    if hosts.count > 1:
        check_alike(hosts, "devices, models and problems", lambda: _facts(experiment, read))


def _facts(experiment: Experiment, read: Mapping[str, str]) -> dict[str, str]:
    kinds = sorted(device.device_kind for device in jax.local_devices())
    facts = {"devices": f"{len(kinds)} ({', '.join(dict.fromkeys(kinds))})"}
    for initial in experiment.initial_names:
        folder = experiment.folder(initial)
        if folder is not None:
            facts[f"the model folder {folder} with digest"] = model_digest(local_folder(folder))
    facts |= {f"the problem file {name} with digest": digest for name, digest in read.items()}
    task: Any = experiment.task
    if hasattr(task, "prompts_digest"):
        facts[f"the templates {task.prompts} with digest"] = task.prompts_digest[:12]
    return facts


def model_digest(folder: Path) -> str:
    """Returns a digest of a folder's JSON files, and of the names and sizes of all others.

    Weights are gigabytes, so only their sizes count.
    """
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.is_file():
            content = file.read_bytes() if file.suffix == ".json" else b""
            digest.update(f"{file.name} {file.stat().st_size}\n".encode() + content)
    return digest.hexdigest()[:12]
