"""Learns from a step while the next one is played, and checks what was played so."""

import dataclasses
import itertools
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np

from atgrpo_jax.common.metric_names import of_policy
from atgrpo_jax.common.types import Episode
from atgrpo_jax.credit.groups import Credited
from atgrpo_jax.engines import gate
from atgrpo_jax.rollout.rollouts import Played, Rollouts
from atgrpo_jax.run.experiment import Experiment
from atgrpo_jax.run.team_learner import TeamLearner
from atgrpo_jax.run.team_state import TeamState
from atgrpo_jax.update.learner import PolicyState

Metrics = dict[str, float]
Credit = Callable[[TeamState, Sequence[Episode]], tuple[TeamState, list[Credited], Metrics]]


@dataclasses.dataclass(frozen=True)
class Overlap:
    """Holds the stages of a run with ``Experiment.max_lag`` that are not one after the other."""

    experiment: Experiment
    learner: TeamLearner
    rollouts: Rollouts
    credit: Credit  # ``Stages.credit``, which audits

    def learn(self, team: TeamState, credited: Sequence[Credited], step: int) -> tuple[TeamState, Metrics]:
        """Updates ``team`` with the groups of ``step`` in a thread, and plays the next step meanwhile.

        The engine draws all of it with the weights of ``team``, and may share their arrays: the update
        changes copies. Returns the team after the update, with what was played as ``ahead``, and metrics.
        What was played is audited, and compared with the weights that drew it while these are still there.
        """
        copies = {name: _with_own_params(state) for name, state in team.policies.items()}
        began = time.monotonic()
        with ThreadPoolExecutor(1, "update") as thread:
            update = thread.submit(self.learner.update, team._replace(policies=copies), credited, step)
            try:
                played = self.rollouts.play(step + 1, team.lessons, stops=False)
                played_s = time.monotonic() - began
            finally:  # if both fail, the update's error is raised, in the context of the rollout's
                after, learned = update.result()
        after = after._replace(ahead=played)
        _, coming, _ = self.credit(after, played.episodes)
        found = self._gaps(team, coming, step + 1) | {"rollout/lag": float(after.lag)}
        learned["perf/overlap_s"] = min(played_s, learned["perf/update_s"])
        return after._replace(ahead=Played(played.episodes, played.metrics | found)), learned

    def _gaps(self, drew: TeamState, credited: Sequence[Credited], step: int) -> Metrics:
        """Compares the logprobs of a step's first minibatches with those of the team that ``drew`` them.

        Without a lag the update does this. Returns each policy's largest difference. Raises RunError if it
        is too large, unless importance weights correct it (``LossConfig.correction``).
        """
        own = self.experiment
        items: dict[str, list[Credited]] = defaultdict(list)
        for item in credited:
            items[item.group.origin.policy].append(item)
        metrics: Metrics = {}
        for policy in own.team.updated(step, own.task.workflow.roles):
            for batch in itertools.islice(self.learner.batches(items[policy], step), 1):
                trained = batch.trained
                off_ABT = np.abs(self.learner.logprobs(drew, policy, batch) - trained.old_logprobs)
                gap = float(off_ABT.max(where=trained.weights > 0, initial=0.0))
                if own.loss.correction is None:
                    gate.check_gap(policy, gap, own.max_logprob_gap)
                metrics |= of_policy(policy, {"logprob_gap": gap})
        return metrics


def _with_own_params(state: PolicyState) -> PolicyState:
    return state._replace(params=jax.tree.map(jnp.copy, state.params))
