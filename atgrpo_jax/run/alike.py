"""Compares what the hosts of a run compute with: their devices, and the model folders that they read."""

import hashlib
from pathlib import Path

import jax

from atgrpo_jax.common.copies import local_folder
from atgrpo_jax.common.hosts import Hosts, check_alike
from atgrpo_jax.run.experiment import Experiment


def check_machines(hosts: Hosts, experiment: Experiment) -> None:
    """Raises RunError if a host has other devices than host 0, or another model in a folder."""
    if hosts.count > 1:
        check_alike(hosts, "devices and models", lambda: _facts(experiment))


def _facts(experiment: Experiment) -> dict[str, str]:
    kinds = sorted(device.device_kind for device in jax.local_devices())
    facts = {"devices": f"{len(kinds)} ({', '.join(dict.fromkeys(kinds))})"}
    for initial in experiment.initial_names:
        folder = experiment.folder(initial)
        if folder is not None:
            facts[f"the model folder {folder} with digest"] = model_digest(local_folder(folder))
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
