"""Starts and updates the team's policies on the devices, and gives the engine their weights."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from atgrpo_jax.arrays.finite_trees import check_tree
from atgrpo_jax.arrays.mesh import Divided, check_mesh, divided_parameters, provide_devices
from atgrpo_jax.common.types import Batch, seed_of
from atgrpo_jax.engines.protocol import Engine, Served
from atgrpo_jax.models.hf import hf
from atgrpo_jax.models.transformer import Transformer, Weights, init_params
from atgrpo_jax.rollout.team import BASE
from atgrpo_jax.run.checkpoint import Checkpoints
from atgrpo_jax.run.experiment import Experiment
from atgrpo_jax.sandbox.protocol import Runner
from atgrpo_jax.tokens.tokens import check_same_ids
from atgrpo_jax.update.learner import Learner, PolicyState
from atgrpo_jax.update.updates import Updates
from atgrpo_jax.update.warm_start import warm_start


class Policies:
    """Builds the learners of all policies, and starts, restores and updates their states.

    The states belong to the caller. Only ``base`` is kept here: the starting weights that adapters
    are on. It is None if there are no adapters, and before ``start`` or ``restore``. ``shapes`` are
    the shapes of all states.
    """

    def __init__(self, x: Experiment, devices: Sequence[Any] | None = None):
        """Makes the meshes and the learners.

        Args:
          devices: the mesh is made of these; this machine's if not given. They need not exist, and
            then only shapes and ``compile`` can be used.
        """
        self._x = x
        if devices is None:
            provide_devices(x.mesh)
            devices = jax.devices()
        check_mesh(x.mesh, len(devices), _divided(x))
        self.names = x.policies
        # If there are adapters, there is only one mesh: that of their base.
        self.meshes: dict[str, Mesh] = {
            name: x.mesh.build(devices, place)
            for place, name in enumerate(dict.fromkeys(self.names + x.starts))
        }
        self._made: dict[tuple, Learner] = {}
        self.adapted = {name for name in self.names if x.start(name) != name}
        self._learners = {name: self._learner(x.start(name), name in self.adapted) for name in self.names}
        self.shapes = {name: self._learners[name].shapes for name in self.names}
        self.models = {name: self._learners[name].model for name in self.names}
        self.base: Any = None

    def _learner(self, start: str, adapter: bool = False) -> Learner:
        """Returns the learner for an architecture, kind and mesh; policies may share it."""
        x, mesh = self._x, self.meshes[start]
        key = x.architecture(start), adapter, mesh
        if key not in self._made:
            objective, lora = x.loss.objective(), x.lora if adapter else None
            self._made[key] = Learner(_model(x, start), x.optimizer, objective, mesh, lora)
        return self._made[key]

    def start(self, runner: Runner | None = None) -> dict[str, PolicyState]:
        """Returns the states of all policies before any training, and sets ``base``.

        They are random or read from a folder; then comes the warm start, if there is one. The
        ``runner`` runs the programs of its demonstrations. Raises RunError if a folder does not
        hold what the model needs, or holds numbers that are not finite.
        """
        x = self._x
        fresh = {name: lambda name=name: self._fresh(name) for name in x.starts}
        if x.warm_start is None:
            params = {name: make() for name, make in fresh.items()}
        else:
            params = warm_start(
                x.warm_start,
                x.optimizer,
                fresh,
                models={name: self._learner(name).model for name in x.starts},
                meshes={name: self.meshes[name] for name in x.starts},
                task=x.task,
                team=x.team.starting(x.task.workflow.order),
                tokenizer=x.tokenizer,
                batch=x.batch,
                seed=x.seed,
                source=repr(x.pretrained),
                runner=runner,
            )
            for name, own in params.items():
                where = f"policy {name}, as the warm start left it"
                check_tree(own, where, f"delete what is cached in {x.warm_start.cache_dir}")
        if self.adapted:
            # Copied, because a trained policy may have that name, too: updates free its arrays.
            self.base = jax.tree.map(jnp.copy, params[BASE]) if BASE in self.names else params[BASE]
        return {name: self._start(name, params) for name in self.names}

    def restore(self, checkpoints: Checkpoints, step: int) -> dict[str, PolicyState]:
        """Returns the states after ``step``, and sets ``base``.

        Raises RunError if they cannot be read, and NotFinite for numbers that are not finite.
        """
        if self.adapted and self.base is None:
            base = checkpoints.restore_base(self.base_shapes())
            check_tree(base, "the base of the adapters", "start the run anew")
            self.base = base
        states = checkpoints.restore(step, self.shapes)
        for name, state in states.items():
            do = "delete that checkpoint's folder to go on from an earlier one"
            check_tree(state, f"checkpoint {step}, policy {name}", do)
        return states

    def load(self, folder: str, start: str) -> Any:
        """Reads the parameters of one of ``Experiment.starts`` from a model folder.

        Raises RunError if it does not hold what the model needs, or holds numbers that are not
        finite.
        """
        return hf.load(folder, self._learner(start).shapes.params)

    def base_shapes(self) -> Any:
        """Returns the shapes of ``base``; only for a team with adapters."""
        return self._learner(BASE).shapes.params

    def train(
        self, name: str, state: PolicyState, batches: Iterable[Batch], reference: Any
    ) -> tuple[PolicyState, Updates]:
        """Calls ``Learner.train`` for one policy, with the run's settings."""
        temperature, rate = self._x.rollout.sampling.temperature, self._x.team.rates.get(name, 1.0)
        cap = self._x.loss.correction
        return self._learners[name].train(state, batches, temperature, reference, self.base, rate, cap)

    def compile(self, name: str, batch: Batch) -> list[jax.stages.Compiled]:
        """Calls ``Learner.compile`` for one policy, with the run's settings."""
        reference = self.shapes[name].params if self._x.loss.kl else None
        base = self.base_shapes() if name in self.adapted else None
        return self._learners[name].compile(batch, reference, base)

    def weights(self, states: Mapping[str, PolicyState]) -> dict[str, Weights]:
        return {name: self._learners[name].weights(states[name].params, self.base) for name in states}

    def engine(self) -> Engine:
        """Builds the engine that samples from the policies. It has no weights yet."""
        x = self._x
        return x.engine.build(
            Served(
                models=self.models,
                meshes=self.meshes,
                sources={name: self.source(name) for name in self.names},
                starts={name: x.start(name) for name in self.names},
                stop_ids=x.tokenizer.stop_ids,
                decode=x.tokenizer.decode,
                lora=x.lora,
                longest_answer=x.rollout.max_tokens,
                candidates=x.rollout.candidates if x.rollout.mode == "tree" else 1,
            )
        )

    def source(self, name: str) -> str | dict[str, Any]:
        """Returns the model folder that a policy starts from.

        For a policy with a random start it returns what a config.json of its model would say.
        """
        start = self._x.start(name)
        model = _model(self._x, start)
        return self._x.folder(start) or hf.description(
            model.config, model.vocab_size, self._x.tokenizer.stop_ids
        )

    def _start(self, name: str, params: Mapping[str, Any]) -> PolicyState:
        learner = self._learners[name]
        if name in self.adapted:
            return learner.init(self._key("adapter", name))
        return learner.start_from(params[name])

    def _fresh(self, start: str) -> Any:
        folder = self._x.folder(start)
        if folder is None:
            return self._learner(start).fresh(self._key("init", start))
        check_same_ids(self._x.tokenizer, folder)
        params = self.load(folder, start)
        hf.check_same_model(self._x.architecture(start), folder)
        return params

    def _key(self, what: str, name: str) -> jax.Array:
        return jax.random.key(seed_of(what, self._x.seed, name) % 2**32)


def _model(x: Experiment, start: str) -> Transformer:
    config = x.architecture(start)
    return Transformer(config, config.vocab_size or x.tokenizer.vocab_size)


def _divided(x: Experiment) -> Iterator[Divided]:
    """Yields all that the mesh must divide evenly: heads and parameters of all models."""
    for start in x.starts:
        model = _model(x, start)
        yield f"ModelConfig.heads of {start}", model.config.heads, "tensor"
        yield from divided_parameters(jax.eval_shape(lambda m=model: init_params(m, jax.random.key(0))))
