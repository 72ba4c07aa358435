"""Holds the stages of a training step and the objects that they share."""

import contextlib
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import jax

from atgrpo_jax.arrays.finite_trees import check_tree
from atgrpo_jax.common.finite import UNTOUCHED, check_finite
from atgrpo_jax.common.metric_names import of_policy, together
from atgrpo_jax.common.progress import Progress, say
from atgrpo_jax.common.types import Episode, seed_of
from atgrpo_jax.credit.groups import Credited, audit, credit
from atgrpo_jax.engines import gate
from atgrpo_jax.engines.gate import Gate
from atgrpo_jax.rollout.evaluation import available, drawn_by, evaluate
from atgrpo_jax.rollout.rollout import Player, engine_propose, play_all, train_indices
from atgrpo_jax.run.checkpoint import Checkpoints
from atgrpo_jax.run.experiment import Experiment
from atgrpo_jax.run.folder import RunFolder
from atgrpo_jax.run.metrics import CompileCounter, MetricsWriter, episode_metrics
from atgrpo_jax.run.policies import Policies
from atgrpo_jax.tasks.calls import check_split
from atgrpo_jax.tasks.splits import SPLITS
from atgrpo_jax.update.batch import minibatches
from atgrpo_jax.update.learner import PolicyState
from atgrpo_jax.update.updates import Updates


class Trainer:
    """Holds the policies' ``states``; its methods are the stages of ``loop.train``.

    ``done`` is the last complete step.
    """

    def __init__(self, experiment: Experiment, folder: RunFolder):
        self.experiment = experiment
        self.folder = folder
        for split in SPLITS:
            check_split(experiment.task, split)  # a bad split is found before any time is spent
        self.done = 0
        self._saved: int | None = None  # step of the newest checkpoint; None before the first
        self.states: dict[str, PolicyState] = {}
        self._policies = Policies(experiment)
        self._opened = contextlib.ExitStack()
        self._runner = self._opened.enter_context(experiment.running())
        self._engine = self._opened.enter_context(contextlib.closing(self._policies.engine()))
        self._gate = Gate(
            self._policies.models,
            experiment.tokenizer.stop_ids,
            experiment.rollout.temperature,
            experiment.max_logprob_gap,
            experiment.seed,
        )
        self._checkpoints = Checkpoints(
            folder.checkpoints, experiment.identity(), experiment.keep_checkpoints
        )
        self._compiles = CompileCounter()
        self._reference: dict[str, Any] = {}
        self._seconds: dict[str, float] = {}
        self._writer: MetricsWriter | None = None
        tree = experiment.rollout.tree
        self._episodes = 1 if tree else experiment.rollout.candidates
        candidates = experiment.rollout.candidates if tree else 1
        self._player = Player(
            experiment.task,
            experiment.team,
            experiment.tokenizer,
            engine_propose(self._engine, experiment.rollout.sampling, candidates, experiment.seed),
            experiment.rollout.sampling,
            experiment.seed,
            runner=self._runner,
            select=experiment.rollout.select,
            exclude=experiment.rollout.exclude,
        )

    def __enter__(self) -> "Trainer":
        return self

    def __exit__(self, *exc) -> None:
        if self._writer is not None:
            self._writer.close()
        self._opened.close()

    @property
    def base(self) -> Any:
        """Returns the frozen parameters that adapters are on; None in a team without adapters."""
        return self._policies.base

    def begin(self) -> None:
        """Restores the newest checkpoint. If there is none, makes, scores and saves step 0."""
        policies = self._policies
        found = self._checkpoints.newest(lambda step: policies.restore(self._checkpoints, step))
        latest = -1 if found is None else found[0]
        self.folder.rewind(latest)
        self._writer = MetricsWriter(self.folder, first=latest + 1)
        if found is None:
            self.states = policies.initial_states(self._runner)
            self.folder.check_ours()
            if policies.base is not None:
                self._checkpoints.save_base(policies.base)
            proof = self.sync(0)
            self._writer.write(0, together(proof, self._score(0, "validation"), self._score(0, "test")))
            self.checkpoint(0)
        else:
            say(f"going on after step {latest} of {self.folder.path}")
            self.done, self.states = found
            self._saved = self.done
            self.sync(latest)
        if self.experiment.loss.kl:
            start = policies.restore(self._checkpoints, 0)
            self._reference = {name: state.params for name, state in start.items()}

    def rollout(self, step: int) -> list[Episode]:
        """Plays fresh training instances with the team; returns the episodes."""
        began = time.monotonic()
        before = self._engine.usage
        own = self._player.clock.seconds
        indices = train_indices(step, self.experiment.rollout.instances)
        episodes = play_all(self._player, step, "train", indices, self._episodes)
        used = self._engine.usage - before
        self._measure("rollout", began, used.tokens)
        self._seconds["perf/rollout_known_prompt"] = used.known_tokens / max(used.prompt_tokens, 1)
        self._seconds["perf/rollout_environment_s"] = self._player.clock.seconds - own
        if used.slot_steps:
            idle = self._seconds["perf/rollout_s"] - used.seconds  # the devices waited
            self._seconds |= {
                "perf/rollout_idle_s": idle,
                "perf/rollout_prefill_s": used.prefill_s,
                "perf/rollout_decode_s": used.decode_s,
                "perf/rollout_occupancy": used.tokens / used.slot_steps,
            }
        return episodes

    def credit(self, step: int, episodes: Sequence[Episode]) -> tuple[list[Credited], dict[str, float]]:
        """Audits the groups; returns them with their advantages, and metrics."""
        for group in (group for episode in episodes for group in episode.groups):
            audit(group, version=step - 1)
        settings = self.experiment.credit
        return credit(
            episodes,
            alpha=self.experiment.team.alpha,
            baseline=settings.baseline,
            normalise=settings.normalise,
        )

    def learn(self, step: int, credited: Sequence[Credited]) -> dict[str, float]:
        """Updates the policies whose turn it is with their groups; returns metrics.

        A policy without groups stays as it is. Raises NotFinite for the first number of an update,
        or of the states after it, that is not finite. Raises RunError if the logprobs of sampler
        and learner differ too much.
        """
        experiment = self.experiment
        began = time.monotonic()
        metrics: dict[str, float] = {}
        tokens = 0.0
        items: dict[str, list[Credited]] = defaultdict(list)
        for item in credited:
            items[item.group.origin.policy].append(item)
        updated = experiment.team.updated(step, experiment.task.workflow.order)
        dispatched: dict[str, Updates] = {}
        for policy in updated:
            batches = minibatches(
                items[policy],
                experiment.batch,
                count=experiment.loss.minibatches,
                epochs=experiment.loss.epochs,
                seed=seed_of("minibatches", experiment.seed, step),
                aggregate=experiment.loss.aggregate,
                constant=experiment.rollout.sampling.max_tokens,
            )
            self.states[policy], dispatched[policy] = self._policies.train(
                policy, self.states[policy], batches, self._reference.get(policy)
            )
        for policy, updates in jax.device_get(dispatched).items():  # the step waits only here
            updates.check(f"step {step}, policy {policy}", self.states[policy])
            learned = updates.metrics()
            if learned["updates"] and experiment.loss.correction is None:
                gate.check_gap(policy, learned["logprob_gap"], experiment.max_logprob_gap)
            metrics |= of_policy(policy, learned)
            tokens += learned["trained_tokens"]
        self._measure("update", began, tokens)
        return metrics

    def sync(self, step: int) -> dict[str, float]:
        """Pushes the new weights to the engine; the gate checks that it samples from them.

        Raises NotFinite before the push if the weights compute numbers that are not finite. This is
        looked at even if ``Experiment.gate`` is false. Raises RunError if the gate's check fails.
        """
        began = time.monotonic()
        before = self._engine.usage
        weights = self._policies.weights(self.states)
        learned = self._gate.learned(weights, step)
        gate.push(self._engine, weights, step)
        proof: dict[str, float] = {}
        if self.experiment.gate:
            corrected = self.experiment.loss.correction is not None
            proof = self._gate.check(self._engine, weights, step, corrected, learned)
        self._seconds["perf/sync_s"] = time.monotonic() - began
        used = self._engine.usage - before
        if used.push_bytes:
            self._seconds["perf/push_s"] = used.push_s
            self._seconds["perf/push_mb_per_s"] = used.push_bytes / 1e6 / used.push_s
        return proof

    def record(
        self,
        step: int,
        episodes: Sequence[Episode],
        credited: Sequence[Credited],
        *metrics: dict[str, float],
    ) -> dict[str, float]:
        """Scores the team if that is due, and writes the step's episodes and metrics.

        Returns the metrics. Raises NotFinite, before it writes, if one of them is not finite.
        """
        last = step == self.experiment.steps
        every = self.experiment.evaluation.every
        scores: dict[str, float] = {}
        if every and (step % every == 0 or last):
            scores |= self._score(step, "validation")
        if last:
            scores |= self._score(step, "test")
        seconds = self._seconds | {"perf/compiles": float(self._compiles.count)}
        record = together(*metrics, episode_metrics(episodes), scores, seconds)
        check_finite(record, f"step {step}, metrics", UNTOUCHED)
        self.folder.write_episodes(step, credited, self.experiment.tokenizer)
        assert self._writer is not None
        self._writer.write(step, record)
        self.done = step
        return record

    def checkpoint(self, step: int) -> None:
        """Saves step ``step`` if a checkpoint is due."""
        if step % self.experiment.checkpoint_every == 0 or step == self.experiment.steps:
            self._save(step)

    def checkpoint_now(self) -> None:
        """Saves the last complete step if it is not saved yet. (``begin`` saves step 0 itself.)"""
        if self.unsaved():
            self._save(self.done)

    def unsaved(self) -> bool:
        """Returns whether complete steps would be lost if the process ended now."""
        return self.done > (self._saved or 0)

    def where(self) -> str:
        """Returns a line that says what is on disk if the run ends now."""
        if self._saved is None:
            return "stopped before the first checkpoint; the same command begins again"
        return f"stopped after step {self._saved}, which is saved; the same command goes on from there"

    def _save(self, step: int) -> None:
        """Writes a checkpoint. Raises NotFinite first, so that no bad state replaces a good one."""
        for name, state in self.states.items():
            check_tree(state, f"step {step}, policy {name}", UNTOUCHED)
        self.folder.check_ours()
        self._checkpoints.save(step, self.states)
        self._saved = step

    def _score(self, step: int, split: str) -> dict[str, float]:
        evaluation = self.experiment.evaluation
        most = evaluation.instances if split == "test" else evaluation.validation_instances
        instances = available(self.experiment.task, split, most)
        sampling = evaluation.sampling(self.experiment.rollout.sampling)
        with Progress(f"{split} after step {step}", instances, "episode") as progress:
            score = evaluate(
                self.experiment.task,
                self.experiment.team,
                self.experiment.tokenizer,
                self._engine,
                sampling,
                seed=self.experiment.seed,
                step=step,
                split=split,
                instances=instances,
                runner=self._runner,
                on_episode=progress.advance,
            )
        say(f"{split} after step {step}: {score}; {drawn_by(sampling)}")
        return {f"{split}/{name}": value for name, value in score.record().items()}

    def _measure(self, stage: str, began: float, tokens: float) -> None:
        seconds = time.monotonic() - began
        self._seconds[f"perf/{stage}_s"] = seconds
        self._seconds[f"perf/{stage}_tokens_per_s"] = tokens / seconds
