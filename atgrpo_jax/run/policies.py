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
from atgrpo_jax.models.transformer import PolicyWeights, Transformer, init_params
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
    are on. It is None if there are no adapters, and before ``initial_states`` or ``restore``.
    ``shapes`` are the shapes of all states.
    """

    def __init__(self, experiment: Experiment, devices: Sequence[Any] | None = None):
        """Makes the meshes and the learners.

        Args:
          devices: the mesh is made of these; this machine's if not given. They need not exist, and
            then only shapes and ``compile`` can be used.
        """
        self._experiment = experiment
        if devices is None:
            provide_devices(experiment.mesh)
            devices = jax.devices()
        check_mesh(experiment.mesh, len(devices), _divided(experiment))
        self.names = experiment.policies
        # If there are adapters, there is only one mesh: that of their base.
        self.meshes: dict[str, Mesh] = {
            name: experiment.mesh.build(devices, place)
            for place, name in enumerate(dict.fromkeys(self.names + experiment.initial_names))
        }
        self._made: dict[tuple, Learner] = {}
        self.adapted = {name for name in self.names if experiment.initial_name(name) != name}
        self._learners = {
            name: self._learner(experiment.initial_name(name), name in self.adapted) for name in self.names
        }
        self.shapes = {name: self._learners[name].shapes for name in self.names}
        self.models = {name: self._learners[name].model for name in self.names}
        self.base: Any = None

    def _learner(self, initial: str, adapter: bool = False) -> Learner:
        """Returns the learner for an architecture, kind and mesh; policies may share it."""
        experiment = self._experiment
        mesh = self.meshes[initial]
        key = experiment.architecture(initial), adapter, mesh
        if key not in self._made:
            objective = experiment.loss.objective()
            lora = experiment.lora if adapter else None
            self._made[key] = Learner(
                _model(experiment, initial), experiment.optimizer, objective, mesh, lora
            )
        return self._made[key]

    def initial_states(self, runner: Runner | None = None) -> dict[str, PolicyState]:
        """Returns the states of all policies before any training, and sets ``base``.

        They are random or read from a folder; then comes the warm start, if there is one. The
        ``runner`` runs the programs of its demonstrations. Raises RunError if a folder does not
        hold what the model needs, or holds numbers that are not finite.
        """
        experiment = self._experiment
        fresh = {name: lambda name=name: self._fresh(name) for name in experiment.initial_names}
        if experiment.warm_start is None:
            params = {name: make() for name, make in fresh.items()}
        else:
            params = warm_start(
                experiment.warm_start,
                experiment.optimizer,
                fresh,
                models={name: self._learner(name).model for name in experiment.initial_names},
                meshes={name: self.meshes[name] for name in experiment.initial_names},
                task=experiment.task,
                team=experiment.team.starting(experiment.task.workflow.order),
                tokenizer=experiment.tokenizer,
                batch=experiment.batch,
                seed=experiment.seed,
                source=repr(experiment.pretrained),
                runner=runner,
            )
            for name, own in params.items():
                where = f"policy {name}, as the warm start left it"
                check_tree(own, where, f"delete what is cached in {experiment.warm_start.cache_dir}")
        if self.adapted:
            # Copied, because a trained policy may have that name, too: updates free its arrays.
            self.base = jax.tree.map(jnp.copy, params[BASE]) if BASE in self.names else params[BASE]
        return {name: self._initial_state(name, params) for name in self.names}

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

    def load(self, folder: str, initial: str) -> Any:
        """Reads the parameters of one of ``Experiment.initial_names`` from a model folder.

        Raises RunError if it does not hold what the model needs, or holds numbers that are not
        finite.
        """
        return hf.load(folder, self._learner(initial).shapes.params)

    def base_shapes(self) -> Any:
        """Returns the shapes of ``base``; only for a team with adapters."""
        return self._learner(BASE).shapes.params

    def train(
        self, name: str, state: PolicyState, batches: Iterable[Batch], reference: Any
    ) -> tuple[PolicyState, Updates]:
        """Calls ``Learner.train`` for one policy, with the run's settings."""
        temperature = self._experiment.rollout.sampling.temperature
        rate = self._experiment.team.rates.get(name, 1.0)
        cap = self._experiment.loss.correction
        return self._learners[name].train(state, batches, temperature, reference, self.base, rate, cap)

    def compile(self, name: str, batch: Batch) -> list[jax.stages.Compiled]:
        """Calls ``Learner.compile`` for one policy, with the run's settings."""
        reference = self.shapes[name].params if self._experiment.loss.kl else None
        base = self.base_shapes() if name in self.adapted else None
        return self._learners[name].compile(batch, reference, base)

    def weights(self, states: Mapping[str, PolicyState]) -> dict[str, PolicyWeights]:
        return {name: self._learners[name].weights(states[name].params, self.base) for name in states}

    def engine(self) -> Engine:
        """Builds the engine that samples from the policies. It has no weights yet."""
        experiment = self._experiment
        return experiment.engine.build(
            Served(
                models=self.models,
                meshes=self.meshes,
                sources={name: self.source(name) for name in self.names},
                initial_names={name: experiment.initial_name(name) for name in self.names},
                stop_ids=experiment.tokenizer.stop_ids,
                decode=experiment.tokenizer.decode,
                lora=experiment.lora,
                longest_answer=experiment.rollout.max_tokens,
                candidates=experiment.rollout.candidates if experiment.rollout.tree else 1,
            )
        )

    def source(self, name: str) -> str | dict[str, Any]:
        """Returns the model folder that a policy starts from.

        For a policy with a random start it returns what a config.json of its model would say.
        """
        initial = self._experiment.initial_name(name)
        model = _model(self._experiment, initial)
        return self._experiment.folder(initial) or hf.description(
            model.config, model.vocab_size, self._experiment.tokenizer.stop_ids
        )

    def _initial_state(self, name: str, params: Mapping[str, Any]) -> PolicyState:
        learner = self._learners[name]
        if name in self.adapted:
            return learner.init(self._key("adapter", name))
        return learner.start_from(params[name])

    def _fresh(self, initial: str) -> Any:
        folder = self._experiment.folder(initial)
        if folder is None:
            return self._learner(initial).fresh(self._key("init", initial))
        check_same_ids(self._experiment.tokenizer, folder)
        params = self.load(folder, initial)
        hf.check_same_model(self._experiment.architecture(initial), folder)
        return params

    def _key(self, what: str, name: str) -> jax.Array:
        return jax.random.key(seed_of(what, self._experiment.seed, name) % 2**32)


def _model(experiment: Experiment, initial: str) -> Transformer:
    config = experiment.architecture(initial)
    return Transformer(config, config.vocab_size or experiment.tokenizer.vocab_size)


def _divided(experiment: Experiment) -> Iterator[Divided]:
    """Yields all that the mesh must divide evenly: heads and parameters of all models."""
    for initial in experiment.initial_names:
        model = _model(experiment, initial)
        yield f"ModelConfig.heads of {initial}", model.config.heads, "tensor"
        yield from divided_parameters(jax.eval_shape(lambda m=model: init_params(m, jax.random.key(0))))
