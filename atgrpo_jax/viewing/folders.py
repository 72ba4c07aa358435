"""Reads what run folders say of themselves, to list and to compare them. It builds no experiment."""

import dataclasses
import fcntl
import functools
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from atgrpo_jax.common import buckets
from atgrpo_jax.common.errors import ConfigError
from atgrpo_jax.common.files import is_file, names_in, read_file
from atgrpo_jax.run import changes, gin_config, kept_files, kept_modules, lease
from atgrpo_jax.run.ending import Ending
from atgrpo_jax.run.experiment import CHANGEABLE
from atgrpo_jax.run.folder import RunFolder
from atgrpo_jax.run.gin_names import nearest
from atgrpo_jax.viewing.contents import kept

SEED = "experiment.Experiment.seed"
STEPS = "experiment.Experiment.steps"
TOKENS = "experiment.Experiment.tokens"
# Settings that change nothing of what a step learns, as ``without_changeable`` says. Runs that differ in
# these alone are one group, but for the number of steps or tokens.
_UNLEARNT = "|".join(set(CHANGEABLE) - {"steps", "tokens"})
IDLE = re.compile(
    rf"experiment\.Experiment\.(seed|{_UNLEARNT})|warm_start\.WarmStartConfig\.cache_dir"
    r"|pool\.SandboxConfig\.(level|workers)"
    r"|(.*/)?sglang\.SGLangConfig\..*"
    r"|(.*/)?partners\.Partner\.(?!model$|temperature$|max_tokens$).*"
)
DIGITS = 16  # of a digest
STALE_S = 120.0  # a run in a bucket whose lease is older than this has ended


@dataclasses.dataclass(frozen=True)
class Outline:
    """What a run folder says: its settings, by name, and its metrics."""

    folder: RunFolder
    settings: Mapping[str, str]
    records: Sequence[Mapping[str, Any]]

    @property
    def name(self) -> str:
        return self.folder.path.name

    @property
    def seed(self) -> str:
        return self.settings.get(SEED, "?")

    @property
    def steps(self) -> int:
        """Returns how many steps the run is to have."""
        return self._number(STEPS)

    @property
    def tokens(self) -> int:
        """Returns the drawn tokens by which it is to end; 0 if steps alone end it."""
        return self._number(TOKENS)

    def _number(self, name: str) -> int:
        text = self.settings.get(name, "")
        return int(text) if text.isdigit() else 0

    @property
    def ended(self) -> bool:
        """Returns whether it has made its last step."""
        return self.done >= Ending(self.steps, self.tokens, self.records).last > 0

    @property
    def done(self) -> int:
        """Returns the last step that is complete; -1 before the first record."""
        return len(self.records) - 1

    @functools.cached_property
    def kind(self) -> tuple[tuple[str, str], ...]:
        """Returns the settings that runs of one group, with several seeds, have in common.

        Files that the run keeps are told by their digests, as are your modules. What changed on the way is
        there, too, with the step after which it did.
        """
        unset = (TOKENS, "0")  # runs from before it was a setting do not tell it
        idle = self._idle()
        files = kept_files.digests(self.folder.kept)
        found = {}
        for name, text in self.settings.items():
            for file in sorted(files, key=len, reverse=True):  # one may begin like another
                text = text.replace(f"{gin_config.HERE}{kept_files.FOLDER}/{file}", files[file][:DIGITS])
            if (name, text) != unset and name not in idle:
                found[name] = text
        for module, digest in kept_modules.digests(self.folder.code).items():
            found[f"module {module}"] = digest[:DIGITS]
        for module, digest in kept_modules.earlier(self.folder.code).items():
            found[f"module {module}"] = digest[:DIGITS]
        return tuple(sorted((found | changes.on_the_way(self.folder)).items()))

    def _idle(self) -> set[str]:
        """Returns the names of settings that change nothing of what a step learns."""
        idle: set[str] = set()
        found = {name for name in self.settings if IDLE.fullmatch(name)}
        while found:
            idle |= found
            parts = {part for name in found for part in re.findall(r"@([\w./]+)\(\)", self.settings[name])}
            found = {name for name in self.settings if name.rpartition(".")[0] in parts} - idle
        return idle

    def last(self, metric: str) -> tuple[int, float] | None:
        """Returns the newest value of a metric, with its step."""
        found = ((r["step"], r[metric]) for r in reversed(self.records) if metric in r)
        return next(found, None)

    def solved(self, split: str = "test", step: int | None = None) -> tuple[int, dict[tuple[int, str], bool]]:
        """Returns the step of an evaluation of ``split``, and which of its instances were solved.

        It is the last one, or that after ``step``. An instance is named by its number and its problem.
        There are none if nothing is kept.
        """
        steps = [file.step for file in kept(self.folder) if file.split == split and step in (None, file.step)]
        if not steps:
            return -1, {}
        step = max(steps)
        episodes = self.folder.read_episodes(step, split)
        return step, {(e["instance"], e["problem"]): e["solved"] for e in episodes}


def outline(folder: RunFolder) -> Outline:
    """Reads a run folder. Raises RunError for metrics that cannot be read."""
    text = read_file(folder.config).decode()
    found = re.findall(r"^([\w./]+) = (.*)$", text, re.MULTILINE)
    return Outline(folder, dict(found), folder.read_metrics())


def metric_of(runs: Sequence[Outline], name: str) -> str:
    """Returns the metric that --curve asks for. Raises ConfigError if no run has it."""
    names = {name for run in runs for record in run.records for name in record}
    if name not in names:
        raise ConfigError(f"--curve={name}: none of these runs has that metric{nearest(name, names)}")
    return name


def runs_in(path: Any) -> Iterator[RunFolder]:
    """Yields the run folders in a folder, or the folder itself if it is one, sorted by name."""
    whole = RunFolder(path)
    if is_file(whole.config):
        yield whole
        return
    for name in sorted(names_in(whole.path)):
        inner = RunFolder(whole.path / name)
        if is_file(inner.config):
            yield inner


def is_running(folder: RunFolder) -> bool:
    """Returns whether a process is training in the folder."""
    if not isinstance(folder.path, Path):
        return age_s(folder, lease.NAME) < STALE_S
    try:
        with open(folder.path / ".lock", "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        pass
    return False


def age_s(folder: RunFolder, name: str = "metrics.jsonl") -> float:
    """Returns the seconds since a file of the folder was written; infinity if it is not there."""
    path = folder.path / name
    try:
        return time.time() - path.stat().st_mtime if isinstance(path, Path) else buckets.age_s(path)
    except FileNotFoundError:
        return float("inf")


def state(run: Outline) -> str:
    """Returns "running", "ended", or "stopped" for one that did not reach its last step."""
    if is_running(run.folder):
        return "running"
    return "ended" if run.ended else "stopped"
