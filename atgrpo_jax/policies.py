"""The team's policies on the devices: how each starts, is updated, and what the engine gets of it."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from atgrpo_jax.checkpoint import Checkpoints
from atgrpo_jax.experiment import Experiment
from atgrpo_jax.learner import Learner, PolicyState
from atgrpo_jax.models import hf
from atgrpo_jax.models.transformer import Transformer, Weights
from atgrpo_jax.team import BASE
from atgrpo_jax.types import Batch, seed_of
from atgrpo_jax.warm_start import warm_start


class Policies:
    """Holds no states, but for ``base``: the starting weights that adapters are on, None if there are none.

    ``shapes`` are those of all states.
    """

    def __init__(self, x: Experiment):
        self._x = x
        self._roles = x.task.workflow.order
        self._mesh: Mesh = x.mesh.build()
        self.model = Transformer(x.model, x.vocab_size)
        self.names = x.policies
        kinds = {name: x.team.kind(name, self._roles) for name in self.names}
        made = {
            kind: Learner(
                self.model,
                x.optimizer,
                x.loss.objective(),
                self._mesh,
                x.lora if kind == "lora" else None,
            )
            for kind in sorted(set(kinds.values()))
        }
        self._learners = {name: made[kind] for name, kind in kinds.items()}
        self.shapes = {name: self._learners[name].shapes for name in self.names}
        self._full = made.get("full") or Learner(self.model, x.optimizer, x.loss.objective(), self._mesh)
        self._adapted = "lora" in made
        self.base: Any = None

    def start(self) -> dict[str, PolicyState]:
        """States of all policies before any training: random or from a folder, then the warm start; sets
        ``base``. Raises RunError if a folder does not hold what the model needs."""
        x = self._x
        team = x.team.starting(self._roles)
        fresh = {name: lambda name=name: self._fresh(name) for name in team.policies(self._roles)}
        if x.warm_start is None:
            params = {name: make() for name, make in fresh.items()}
        else:
            params = warm_start(
                x.warm_start,
                x.optimizer,
                fresh,
                model=self.model,
                mesh=self._mesh,
                task=x.task,
                team=team,
                tokenizer=x.tokenizer,
                batch=x.batch,
                seed=x.seed,
                source=repr(x.pretrained),
            )
        if self._adapted:
            # A copy, in case a policy of that name is trained, too: its own arrays are donated.
            self.base = jax.tree.map(jnp.copy, params[BASE]) if BASE in self.names else params[BASE]
        return {name: self._start(name, params) for name in self.names}

    def restore(self, checkpoints: Checkpoints, step: int) -> dict[str, PolicyState]:
        """States as of ``step``; sets ``base``. Raises RunError if they cannot be read."""
        if self._adapted and self.base is None:
            self.base = checkpoints.restore_base(self._full.shapes.params)
        return checkpoints.restore(step, self.shapes)

    def train(
        self, name: str, state: PolicyState, batches: Iterable[Batch], reference: Any
    ) -> tuple[PolicyState, dict[str, float]]:
        """``Learner.train`` of one policy."""
        temperature, rate = self._x.rollout.sampling.temperature, self._x.team.rates.get(name, 1.0)
        return self._learners[name].train(state, batches, temperature, reference, self.base, rate)

    def weights(self, states: Mapping[str, PolicyState]) -> dict[str, Weights]:
        return {name: self._learners[name].weights(states[name].params, self.base) for name in states}

    def source(self, name: str) -> Any:
        """The model folder that a policy, or the base of adapters, starts from; None if it is random."""
        folder = self._x.pretrained
        if not isinstance(folder, Mapping):
            return folder
        adapter = name in self.names and self._x.team.kind(name, self._roles) == "lora"
        return folder[BASE if adapter else name]

    def _start(self, name: str, params: Mapping[str, Any]) -> PolicyState:
        learner = self._learners[name]
        if self._x.team.kind(name, self._roles) == "lora":
            return learner.init(self._key("adapter", name))
        return learner.start_from(params[name])

    def _fresh(self, name: str) -> Any:
        folder = self.source(name)
        if folder is None:
            return self._full.fresh(self._key("init", name))
        return hf.load(folder, self._full.shapes.params)

    def _key(self, what: str, name: str) -> jax.Array:
        return jax.random.key(seed_of(what, self._x.seed, name) % 2**32)
