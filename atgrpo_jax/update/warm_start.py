"""Warm start: behaviour cloning on demonstrations that the task generates, cached on disk."""

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
from atgrpo_jax.common.checks import check_types, require
from atgrpo_jax.common.errors import RunError
from atgrpo_jax.common.files import folder_path, make_folder
from atgrpo_jax.common.progress import Progress, say
from atgrpo_jax.common.types import Episode, Sample, Sampling, hash_bytes, seed_of
from atgrpo_jax.credit.groups import Credited
from atgrpo_jax.engines.gate import Gate
from atgrpo_jax.models.transformer import Transformer, Weights
from atgrpo_jax.rollout.rollout import Player, Propose, play_all, train_indices
from atgrpo_jax.rollout.team import Team
from atgrpo_jax.sandbox.protocol import Runner
from atgrpo_jax.tasks.calls import calling, place
from atgrpo_jax.tasks.protocol import Play, Task, ToolTask
from atgrpo_jax.tokens.tokens import Tokenizer
from atgrpo_jax.update.batch import BatchConfig, pack
from atgrpo_jax.update.learner import Learner, OptimizerConfig, cloning
from atgrpo_jax.update.updates import Updates


@dataclasses.dataclass(frozen=True)
class WarmStartConfig:
    steps: int = 60
    instances: int = 64  # demonstrated a step
    candidates: int = 8  # demonstrations of each prompt; a random one is played on
    learning_rate: float = 1e-3  # the other settings are the experiment's optimizer's
    warmup: int = 20  # updates; the rate then decays to a tenth, over the rest of the steps
    cache_dir: str = "~/.cache/atgrpo_jax"

    def __post_init__(self):
        check_types(self)
        for name in ("steps", "instances", "candidates"):
            require(self, name, getattr(self, name) >= 1, "must be at least 1")
        require(self, "learning_rate", self.learning_rate > 0, "must be positive")
        require(self, "warmup", self.warmup >= 0, "must not be negative")
        try:
            folder_path(self.cache_dir)
        except ValueError as error:
            require(self, "cache_dir", False, str(error))


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
) -> dict[str, Any]:
    """Parameters of every policy after cloning, from the cache if the same were made before.

    Args:
      fresh: for each policy, what makes its parameters before cloning.
      models: theirs.
      meshes: where they are.
      source: names what ``fresh`` makes, beyond the seed.

    A damaged one is made anew. Two processes may make the same one at once: the first result stays.

    Raises RunError or OSError if the result cannot be written, and NotFinite before anything is cached.
    """
    optimizer = dataclasses.replace(
        optimizer,
        learning_rate=config.learning_rate,
        warmup=config.warmup,
        decay=max(0, config.steps - config.warmup),
        final=0.1,
    )
    made_from = (
        config, optimizer, sorted((name, m.config, m.vocab_size) for name, m in models.items()),
        sorted((name, dict(mesh.shape)) for name, mesh in meshes.items()), task, team.sharing,
        tokenizer.digest(), batch, seed, source, jax.__version__,
        jax.devices()[0].device_kind, _sources(task),
    )  # fmt: skip
    key = hash_bytes(repr(dataclasses.replace(config, cache_dir="")) + repr(made_from[1:])).hex()
    path = folder_path(config.cache_dir) / "warm_start" / key
    places = {name: (models[name], meshes[name]) for name in fresh}
    made = {(model, mesh): Learner(model, optimizer, cloning, mesh) for model, mesh in set(places.values())}
    learners = {name: made[place] for name, place in places.items()}
    cached = _cached(path, {name: learners[name].shapes.params for name in fresh})
    if cached is not None:
        return cached
    _check_writable(path.parent)
    propose = demonstrations(task, tokenizer, config.candidates, seed)
    player = Player(task, team, tokenizer, propose, Sampling(), seed, runner=runner, select="random")
    params = _clone(config, fresh, learners, player, batch)
    proof = Gate(models, tokenizer.stop_ids, 1.0, 1.0, seed)
    proof.learned({name: Weights(own) for name, own in params.items()}, 0)
    trees.write_tree(path, params, {"key": key}, keep=True)
    return params


def _cached(path: Path, shapes: Any) -> dict[str, Any] | None:
    """What was made before; None if nothing was, or if it is damaged, which is said."""
    if not os.path.exists(path):  # nor where it cannot be looked for: that is told before anything is written
        return None
    try:
        trees.about_tree(path)
    except trees.Damaged as error:
        say(f"warm start: the cached one is damaged ({error}); it is made anew")
        return None
    say(f"warm start: from the cache, {path}")
    return trees.read_tree(path, shapes)


def _check_writable(folder: Path) -> None:
    """Before a warm start is made, rather than after it. Raises RunError."""
    try:
        make_folder(folder)
        trees.clean(folder)
        tempfile.TemporaryFile(dir=folder).close()
    except (OSError, RunError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise RunError(
            f"WarmStartConfig.cache_dir: cannot write in {folder} ({reason}); give another folder"
        ) from error


def _clone(config, fresh, learners, player, batch) -> dict[str, Any]:
    states = {name: learners[name].start_from(make()) for name, make in fresh.items()}
    with Progress("warm start", config.steps, "step") as progress:
        for step in range(1, config.steps + 1):
            episodes = play_all(player, step, "train", train_indices(step, config.instances))
            done = {}
            for policy, items in demonstrated(episodes).items():
                packed = pack(items, batch, "token", 1)
                states[policy], metrics = learners[policy].update(states[policy], packed, 1.0)
                done[policy] = Updates([metrics], 0)
            done = jax.device_get(done)
            for policy, updates in done.items():
                updates.check(f"warm start, step {step}, policy {policy}", states[policy])
            progress.advance(loss=float(np.mean([updates.records[0]["loss"] for updates in done.values()])))
    return {name: state.params for name, state in states.items()}


def demonstrations(task: Play, tokenizer: Tokenizer, candidates: int, seed: int) -> Propose:
    """Proposes the task's own demonstrations instead of an engine's samples."""

    async def propose(state, key, prompt_ids, policy, spoken):
        return [_demonstration(task, tokenizer, state, key, k, seed) for k in range(candidates)]

    return propose


def _demonstration(task, tokenizer, state, key, k, seed) -> Sample:
    rng = random.Random(seed_of("demonstration", seed, key.path(), k))
    with calling(task, "demonstration", place(key)):
        text = task.demonstration(state, key.role, rng)
    tokens = tokenizer.answer_ids(text)
    return Sample(tokens, (0.0,) * len(tokens), "stop", version=0)


def demonstrated(episodes: Sequence[Episode]) -> dict[str, list[Credited]]:
    """All groups by policy, every candidate of weight one."""
    items: dict[str, list[Credited]] = {}
    for group in (group for episode in episodes for group in episode.groups):
        k = len(group.candidates)
        credited = Credited(group, np.ones(k, np.float32), np.ones(k, bool))
        items.setdefault(group.origin.policy, []).append(credited)
    return items


def _sources(task: Play) -> str:
    """Digest of the code that a warm start comes from: the package's and the task's."""
    files = sorted(Path(atgrpo_jax.__file__).parent.rglob("*.py"))
    own = inspect.getsourcefile(type(task))
    files += [Path(own)] if own else []
    return hash_bytes("".join(file.read_text() for file in files)).hex()
