"""Makes the warm start: policies clone demonstrations of the task. The result is cached on disk."""

import dataclasses
import inspect
import os
import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

import atgrpo_jax
from atgrpo_jax.arrays import trees
from atgrpo_jax.common import buckets
from atgrpo_jax.common.checks import check_types, require
from atgrpo_jax.common.errors import RunError, Unreachable
from atgrpo_jax.common.files import Place, folder_path, make_folder
from atgrpo_jax.common.hosts import ALONE, Hosts, not_seeing
from atgrpo_jax.common.literals import told
from atgrpo_jax.common.progress import Progress, say
from atgrpo_jax.common.types import Batch, Episode, Sample, Sampling, hash_bytes, seed_of
from atgrpo_jax.credit.groups import Credited
from atgrpo_jax.engines.gate import Gate
from atgrpo_jax.models.transformer import PolicyWeights, Transformer
from atgrpo_jax.rollout.player import Player, Propose
from atgrpo_jax.rollout.rollout import play_all, train_indices
from atgrpo_jax.rollout.team import Team
from atgrpo_jax.sandbox.protocol import Runner
from atgrpo_jax.tasks.calls import calling, place
from atgrpo_jax.tasks.protocol import Demonstrating, Play, Task, ToolTask
from atgrpo_jax.tokens.tokens import Tokenizer
from atgrpo_jax.update.batch import BatchConfig, pack
from atgrpo_jax.update.learner import Learner, UpdateInputs
from atgrpo_jax.update.objectives import cloning
from atgrpo_jax.update.optimizer import OptimizerConfig
from atgrpo_jax.update.updates import Updates


@dataclasses.dataclass(frozen=True)
class WarmStartConfig:
    steps: int = 60  # of cloning
    instances: int = 64  # that are played in each step
    candidates: int = 8  # demonstrations of each prompt; a random one is executed
    # Most turns of a demonstrated episode. 0: those of the workflow. Early turns of many instances
    # teach more than all turns of few (docs/log.md).
    turns: int = 0
    learning_rate: float = 1e-3  # all else that is not set here is as in Experiment.optimizer
    warmup: int = 20  # updates; then the rate decays to a tenth until the last step
    cache_dir: str = "~/.cache/atgrpo_jax"  # where results are kept; gs://... does, too

    def __post_init__(self):
        check_types(self)
        for name in ("steps", "instances", "candidates"):
            require(self, name, getattr(self, name) >= 1, "must be at least 1")
        require(self, "learning_rate", self.learning_rate > 0, "must be positive")
        for name in ("turns", "warmup"):
            require(self, name, getattr(self, name) >= 0, "must not be negative")
        try:
            folder_path(self.cache_dir)
        except ValueError as error:
            require(self, "cache_dir", False, str(error))

    def __repr__(self) -> str:
        """Tells ``turns`` only if it is set: runs from before it are known by this text."""
        return told(self, {"turns": 0})


def warm_start(
    config: WarmStartConfig,
    optimizer: OptimizerConfig,
    fresh: Mapping[str, Callable[[], Any]],
    *,
    models: Mapping[str, Transformer],
    meshes: Mapping[str, Mesh],
    task: Task | ToolTask,
    team: Team,
    tokenizer: Tokenizer,
    batch: BatchConfig,
    seed: int,
    source: str,
    runner: Runner | None = None,
    hosts: Hosts = ALONE,
) -> dict[str, Any]:
    """Returns the parameters of every policy after cloning.

    They come from the cache if the same warm start was made before. A damaged one in the cache is
    made again. If two processes make the same one at once, the first result stays. Several ``hosts``
    make it together; they use the cache only if all of them see it.

    Args:
      fresh: for each policy, a function that makes its parameters before cloning.
      models: the model of each policy.
      meshes: the mesh of each policy.
      source: says what ``fresh`` starts from, beside the seed, and what the task is and reads. It is a
        part of the cache's key, and the task is not: paths tell nothing of what is in files.
      runner: runs the programs of demonstrations, if the task has any.

    Raises RunError or OSError if the result cannot be written. Raises NotFinite, before anything is
    cached, for numbers that are not finite.
    """
    optimizer = dataclasses.replace(
        optimizer,
        learning_rate=config.learning_rate,
        warmup=config.warmup,
        decay=max(0, config.steps - config.warmup),
        final=0.1,
    )
    made_from = (
        config, optimizer,
        sorted((name, m.architecture, m.compute, m.vocab_size) for name, m in models.items()),
        sorted((name, dict(mesh.shape)) for name, mesh in meshes.items()), team.sharing,
        tokenizer.digest(), batch, seed, source, jax.__version__,
        jax.devices()[0].device_kind, _sources(task),
    )  # fmt: skip
    key = hash_bytes(repr(dataclasses.replace(config, cache_dir="")) + repr(made_from[1:])).hex()
    path = folder_path(config.cache_dir) / "warm_start" / key
    places = {name: (models[name], meshes[name]) for name in fresh}
    made = {(model, mesh): Learner(model, optimizer, cloning, mesh) for model, mesh in set(places.values())}
    learners = {name: made[place] for name, place in places.items()}
    kept = _kept(path.parent, hosts)
    if kept and hosts.told("cache of the warm start", lambda: b"whole" * _cached(path)):
        return trees.read_tree(path, {name: learners[name].shapes.params for name in fresh}, hosts)
    propose = demonstrations(task, tokenizer, config.candidates, seed)
    player = Player(
        task, team, tokenizer, propose, Sampling(), seed,
        runner=runner, select="random", most_turns=config.turns or None,
    )  # fmt: skip
    params = _clone(config, fresh, learners, player, batch, hosts)
    proof = Gate(models, tokenizer.stop_ids, 1.0, 1.0, seed, hosts)
    proof.learned({name: PolicyWeights(own) for name, own in params.items()}, 0)
    if kept:
        trees.write_tree(path, params, {"key": key}, keep=True, hosts=hosts)
    return params


def _kept(folder: Place, hosts: Hosts) -> bool:
    """Returns whether the cache can be used: all hosts must see it. Makes its folder.

    Raises RunError if it cannot be written: this is found before any work is done.
    """
    if hosts.count > 1 and isinstance(folder, Path):
        trees.check_no_pattern(folder)
    hosts.told("folder of the cache", lambda: _check_writable(folder))
    blind = not_seeing(hosts, folder)
    if blind and hosts.index == 0:
        say(
            f"warm start: host {blind[0]} does not see {folder} of host 0, so it is not cached; give "
            "WarmStartConfig.cache_dir a folder that all hosts share"
        )
    return not blind


def _cached(path: Place) -> bool:
    """Returns whether the warm start is there and whole. Says so, and if it is damaged."""
    # A folder that may not be read counts as empty here: ``_check_writable`` reports it.
    if not (os.path.exists(path) if isinstance(path, Path) else trees.is_tree(path)):
        return False
    try:
        trees.about_tree(path)
    except trees.Damaged as error:
        say(f"warm start: the cached one is damaged ({error}); it is made anew")
        return False
    say(f"warm start: from the cache, {path}")
    return True


def _check_writable(folder: Place) -> None:
    """Raises RunError if nothing can be written in ``folder``.

    It is called before the warm start is made, so that no work is lost.
    """
    try:
        make_folder(folder)
        trees.clean(folder)
        if isinstance(folder, Path):
            tempfile.TemporaryFile(dir=folder).close()
        else:
            buckets.check_writable(folder)
    except Unreachable:
        raise
    except (OSError, RunError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise RunError(
            f"WarmStartConfig.cache_dir: cannot write in {folder} ({reason}); give another folder"
        ) from error


def _clone(config, fresh, learners, player, batch, hosts) -> dict[str, Any]:
    def shown(step: int) -> dict[str, Batch]:
        indices = train_indices(step, config.instances)
        groups = demonstrated(play_all(player, step, "train", indices, hosts=hosts))
        return {policy: pack(items, batch, "token", 1) for policy, items in groups.items()}

    states = {name: learners[name].start_from(make()) for name, make in fresh.items()}
    with Progress("warm start", config.steps, "step", compiles=True) as progress:
        coming = shown(1)
        for step in range(1, config.steps + 1):
            done = {}
            for policy, packed in coming.items():
                states[policy], metrics = learners[policy].update(states[policy], UpdateInputs(packed))
                done[policy] = Updates([metrics], 0)
            if step < config.steps:
                coming = shown(step + 1)  # while the devices work: demonstrations need no weights
            done = jax.device_get(done)
            for policy, updates in done.items():
                updates.check(f"warm start, step {step}, policy {policy}", states[policy])
            progress.advance(loss=float(np.mean([updates.records[0]["loss"] for updates in done.values()])))
    return {name: state.params for name, state in states.items()}


def demonstrations(task: Play, tokenizer: Tokenizer, candidates: int, seed: int) -> Propose:
    """Returns a ``Propose`` that gives the task's demonstrations, not an engine's samples.

    A task without demonstrations gives empty texts, of which prompts can be measured.
    """

    async def propose(state, key, prompt_ids, policy, spoken):
        return [_demonstration(task, tokenizer, state, key, k, seed) for k in range(candidates)]

    return propose


def _demonstration(task, tokenizer, state, key, k, seed) -> Sample:
    rng = random.Random(seed_of("demonstration", seed, key.path(), k))
    text = ""
    if isinstance(task, Demonstrating):
        with calling(task, "demonstration", place(key)):
            text = task.demonstration(state, key.speaker, rng)
    tokens = tokenizer.answer_ids(text)
    return Sample(tokens, (0.0,) * len(tokens), "stop", version=0)


def demonstrated(episodes: Sequence[Episode]) -> dict[str, list[Credited]]:
    """Returns the groups of each policy; every candidate is trained and has the advantage 1.

    What partners say in demonstrations is cloned by nobody.
    """
    items: dict[str, list[Credited]] = {}
    for group in (group for episode in episodes for group in episode.groups):
        if group.by_partner:
            continue
        k = len(group.candidates)
        credited = Credited(group, np.ones(k, np.float32), np.ones(k, bool))
        items.setdefault(group.origin.policy, []).append(credited)
    return items


def _sources(task: Play) -> str:
    """Returns a digest of the code and the prompts of the package, and of the task's file."""
    package = Path(atgrpo_jax.__file__).parent
    files = sorted(file for kind in ("*.py", "*.txt") for file in package.rglob(kind))
    own = inspect.getsourcefile(type(task))
    files += [Path(own)] if own else []
    return hash_bytes("".join(file.read_text() for file in files)).hex()
