"""Makes, restores and updates a team on the devices, and gives the engine its weights."""

import functools
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from atgrpo_jax.arrays.finite_trees import check_tree
from atgrpo_jax.arrays.mesh import check_mesh, provide_devices
from atgrpo_jax.arrays.spread import check_hosts
from atgrpo_jax.common.copies import local_folder
from atgrpo_jax.common.hosts import ALONE, Hosts
from atgrpo_jax.common.metric_names import of_policy
from atgrpo_jax.common.types import Batch, seed_of
from atgrpo_jax.credit.groups import Credited
from atgrpo_jax.engines import gate
from atgrpo_jax.engines.protocol import Engine, Served
from atgrpo_jax.models.divided import divided
from atgrpo_jax.models.families.table import transformer
from atgrpo_jax.models.hf import hf
from atgrpo_jax.models.lora import LoraConfig
from atgrpo_jax.models.transformer import PolicyWeights, Transformer
from atgrpo_jax.rollout.team import BASE
from atgrpo_jax.run.checkpoint import Checkpoints
from atgrpo_jax.run.experiment import Experiment
from atgrpo_jax.run.team_state import NOTHING, Given, TeamState, Watch
from atgrpo_jax.run.warming import warmed
from atgrpo_jax.sandbox.protocol import Runner
from atgrpo_jax.tokens.same_ids import check_same_ids
from atgrpo_jax.update.batch import digest_of, minibatches
from atgrpo_jax.update.learner import Learner, PolicyState, UpdateInputs
from atgrpo_jax.update.objectives import by_number
from atgrpo_jax.update.updates import Updates


class TeamLearner:
    """Builds the learners of all policies; makes, restores and updates the TeamState of a run.

    ``shapes`` are the shapes of all policies' states.
    """

    def __init__(self, experiment: Experiment, hosts: Hosts = ALONE, devices: Sequence[Any] | None = None):
        """Makes the meshes and the learners.

        Args:
          hosts: those whose devices make the mesh.
          devices: the mesh is made of these; those of all hosts if not given. They need not exist,
            and then only shapes and ``compile`` can be used.
        """
        self._experiment = experiment
        self._hosts = hosts
        if devices is None:
            provide_devices(-(-experiment.engine.devices_needed(experiment.mesh) // hosts.count))
            devices = jax.devices()
        models = {name: _model(experiment, name) for name in experiment.initial_names}
        check_mesh(experiment.mesh, len(devices), divided(models))
        if hosts.count > 1:
            check_hosts(experiment.mesh, len(devices), hosts.count)
        self.names = experiment.policies
        # If there are adapters, there is only one mesh: that of their base.
        self.meshes: dict[str, Mesh] = {
            name: experiment.mesh.build(devices, place)
            for place, name in enumerate(dict.fromkeys(self.names + experiment.initial_names))
        }
        self._made: dict[tuple, Learner] = {}
        self.adapted = {name for name in self.names if experiment.initial_name(name) != name}
        self._learners = {}
        for name in self.names:
            lora = experiment.lora if name in self.adapted else None
            self._learners[name] = self._learner(experiment.initial_name(name), lora)
        self.shapes = {name: self._learners[name].shapes for name in self.names}
        self.models = {name: self._learners[name].model for name in self.names}
        self.reference: Mapping[str, Any] = {}  # what the loss's KL term is to, if it has one

    def _learner(self, initial: str, lora: LoraConfig | None = None) -> Learner:
        """Returns the learner for an architecture, kind and mesh; policies may share it."""
        experiment = self._experiment
        mesh = self.meshes[initial]
        key = experiment.architecture(initial), lora, mesh
        if key not in self._made:
            objective = by_number([loss.objective() for loss in experiment.losses])
            self._made[key] = Learner(
                _model(experiment, initial), experiment.optimizer, objective, mesh, lora
            )
        return self._made[key]

    def initial(self, runner: Runner | None = None, given: Given = NOTHING) -> TeamState:
        """Returns the team before any training.

        Its parameters are random or read from a folder, but for those that are ``given``; then comes
        the warm start, if there is one. The ``runner`` runs the programs of its demonstrations. Raises
        RunError if a folder does not hold what the model needs, or holds numbers that are not finite.
        """
        experiment = self._experiment
        names = [name for name in experiment.initial_names if name not in given.params]
        fresh = {name: lambda name=name: self._fresh(name) for name in names}
        if experiment.warm_start is None:
            params = dict(given.params) | {name: make() for name, make in fresh.items()}
        else:
            models = {name: self._learner(name).model for name in names}
            params = warmed(experiment, fresh, models, self.meshes, runner, self._hosts)
        base = params.get(BASE) if self.adapted else None
        if self.adapted and BASE in self.names:
            base = jax.tree.map(jnp.copy, base)  # a trained policy has that name: updates free its arrays
        params |= given.adapters
        return TeamState({name: self._initial_state(name, params) for name in self.names}, base)

    def restore(self, checkpoints: Checkpoints, step: int) -> TeamState:
        """Returns the team after ``step``.

        Raises RunError if it cannot be read, and NotFinite for numbers that are not finite.
        """
        base = checkpoints.restore_base(self.base_shapes()) if self.adapted else None
        check_tree(base, "the base of the adapters", "start the run anew")
        states, version = checkpoints.restore(step, self.shapes)
        for name, state in states.items():
            do = "delete that checkpoint's folder to go on from an earlier one"
            check_tree(state, f"checkpoint {step}, policy {name}", do)
        return TeamState(states, base, version, checkpoints.memory(step), checkpoints.lessons(step))

    def refer_to(self, checkpoints: Checkpoints, step: int) -> None:
        """Reads the parameters that the loss's KL term compares with. Raises as ``restore`` does."""
        found = checkpoints.restore_params(step, {name: own.params for name, own in self.shapes.items()})
        check_tree(found, f"checkpoint {step}, which a KL term compares with", "start the run anew")
        self.reference = found

    def load(self, folder: str, initial: str) -> Any:
        """Reads the parameters of one of ``Experiment.initial_names`` from a model folder.

        Raises RunError if it does not hold what the model needs, or holds numbers that are not
        finite.
        """
        return hf.load(folder, self._learner(initial).shapes.params)

    def base_shapes(self) -> Any:
        """Returns the shapes of ``base``; only for a team with adapters."""
        return self.shapes_of(BASE).params

    def shapes_of(self, initial: str, lora: LoraConfig | None = None) -> PolicyState:
        """Returns the shapes of one of ``Experiment.initial_names``, if trained, or of an adapter on it."""
        return self._learner(initial, lora).shapes

    def update(
        self, team: TeamState, credited: Sequence[Credited], step: int, watch: Watch | None = None
    ) -> tuple[TeamState, dict[str, float]]:
        """Updates the policies whose turn it is with their groups. Returns the team, and metrics.

        A policy without groups stays as it is. The arrays of the others' old states are freed. ``watch``
        looks on, if it is given.

        Raises NotFinite for the first number of an update, or of the states after it, that is not finite.
        Raises RunError if the logprobs of sampler and learner differ too much.
        """
        experiment = self._experiment
        began = time.monotonic()
        items: dict[str, list[Credited]] = defaultdict(list)
        for item in credited:
            items[item.group.origin.policy].append(item)
        states = dict(team.policies)
        dispatched: dict[str, Updates] = {}
        for policy in experiment.team.updated(step, experiment.task.workflow.roles):
            learner = self._learners[policy]
            state = states[policy]
            records = []
            tokens_run = 0
            for inputs, found in self._inputs(policy, team, items[policy], step):
                if watch is not None:
                    watch(policy, learner, state, inputs)
                state, of_update = learner.update(state, inputs)
                records.append(of_update | found)
                what = f"minibatch {len(records)} of policy {policy} in step {step}"
                self._hosts.compare(what, functools.partial(digest_of, inputs.batch))
                tokens_run += int((inputs.batch.segments > 0).sum())
            states[policy] = state
            dispatched[policy] = Updates(records, tokens_run)
        metrics: dict[str, float] = {}
        tokens = 0.0
        for policy, updates in jax.device_get(dispatched).items():  # the step waits only here
            updates.check(f"step {step}, policy {policy}", states[policy])
            learned = updates.metrics(team.lag)
            if "logprob_gap" in learned and experiment.loss.correction is None:
                gate.check_gap(policy, learned["logprob_gap"], experiment.max_logprob_gap)
            metrics |= of_policy(policy, learned)
            tokens += learned["trained_tokens"]
        seconds = time.monotonic() - began
        metrics |= {"perf/update_s": seconds, "perf/update_tokens_per_s": tokens / seconds}
        return team._replace(policies=states, version=team.version + 1), metrics

    def _inputs(
        self, policy: str, team: TeamState, items: Sequence[Credited], step: int
    ) -> Iterable[tuple[UpdateInputs, dict[str, float]]]:
        """Returns the inputs of a policy's updates in one step, and metrics of their correction."""
        experiment = self._experiment
        batches = self.batches(items, step)
        rate = experiment.team.rates.get(policy, 1.0)
        reference = self.reference.get(policy)
        given = (UpdateInputs(batch, rate, reference, team.base) for batch in batches)
        most = experiment.loss.correction
        if most is None:
            return ((inputs, {}) for inputs in given)
        # All with the parameters from before the first update.
        params = team.policies[policy].params
        return [self._learners[policy].corrected(params, inputs, most) for inputs in given]

    def batches(self, items: Sequence[Credited], step: int) -> Iterator[Batch]:
        """Yields the minibatches of a policy's groups in one step, as they are before any correction."""
        experiment = self._experiment
        return minibatches(
            items,
            experiment.batch,
            count=experiment.loss.minibatches,
            epochs=experiment.loss.epochs,
            seed=seed_of("minibatches", experiment.seed, step),
            aggregate=experiment.loss.aggregate,
            constant=experiment.rollout.max_tokens,
            objectives={role: experiment.losses.index(own.loss) for role, own in experiment.by_role.items()},
        )

    def logprobs(self, team: TeamState, policy: str, batch: Batch) -> np.ndarray:
        """Returns the logprobs [A, B, T] of a batch's trained tokens, by one policy of the team."""
        params = team.policies[policy].params
        return self._learners[policy].logprobs(params, UpdateInputs(batch, base=team.base))

    def compile(self, name: str, batch: Batch) -> list[jax.stages.Compiled]:
        """Calls ``Learner.compile`` for one policy, with the run's settings."""
        reference = self.shapes[name].params if self._experiment.refers else None
        base = self.base_shapes() if name in self.adapted else None
        return self._learners[name].compile(UpdateInputs(batch, None, reference, base))

    def weights(self, team: TeamState) -> dict[str, PolicyWeights]:
        """Returns the weights that the team's policies draw and are scored with."""
        found = {}
        for name, state in team.policies.items():
            found[name] = self._learners[name].weights(state.params, team.base)
        return found

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
                longest_answer=experiment.longest_answer,
                candidates=experiment.most_candidates,
                hosts=self._hosts,
            )
        )

    def source(self, name: str) -> str | dict[str, Any]:
        """Returns the model folder that a policy starts from, as it is on this disk.

        For a policy with a random start it returns what a config.json of its model would say.
        """
        initial = self._experiment.initial_name(name)
        model = _model(self._experiment, initial)
        folder = self._experiment.folder(initial)
        if folder is not None:
            return str(local_folder(folder))
        return hf.description(
            model.architecture,
            model.vocab_size,
            self._experiment.tokenizer.stop_ids,
            model.compute.param_dtype,
        )

    def _initial_state(self, name: str, params: Mapping[str, Any]) -> PolicyState:
        learner = self._learners[name]
        if name in params:
            return learner.start_from(params[name])
        return learner.init(self._key("adapter", name))

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
    architecture = experiment.architecture(initial)
    vocab_size = architecture.vocab_size or experiment.tokenizer.vocab_size
    return transformer(architecture, vocab_size, experiment.compute)
