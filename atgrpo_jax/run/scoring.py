"""Scores a team on held-out instances while it trains, and measures what each role's words change."""

import time
from collections.abc import Mapping, Sequence

from atgrpo_jax.common.hosts import ALONE, Hosts
from atgrpo_jax.common.progress import Progress, say
from atgrpo_jax.common.types import Episode, Sampling
from atgrpo_jax.engines.protocol import Engine
from atgrpo_jax.partners.answers import Partners
from atgrpo_jax.rollout.contributions import Compared, alarms, figures
from atgrpo_jax.rollout.evaluation import Score, available, drawn_by, evaluate, evaluating
from atgrpo_jax.rollout.influence import Influence, check_enough
from atgrpo_jax.rollout.rollout import engine_propose
from atgrpo_jax.run.episodes import written
from atgrpo_jax.run.experiment import Experiment
from atgrpo_jax.run.folder import RunFolder
from atgrpo_jax.sandbox.protocol import Runner


class Scoring:
    """Scores the weights that a run's engine holds."""

    def __init__(
        self,
        experiment: Experiment,
        folder: RunFolder,
        engine: Engine,
        runner: Runner | None,
        partners: Partners | None,
        hosts: Hosts,
    ):
        self._experiment = experiment
        self._folder = folder
        self._engine = engine
        self._runner = runner
        self._partners = partners
        self._hosts = hosts
        settings = experiment.evaluation
        if settings.influence_every:
            check_enough(held_out(experiment, "validation"))

    def score(self, step: int, split: str, last: bool = False) -> dict[str, float]:
        """Plays a split after ``step``, and writes its episodes. Returns metrics.

        ``last`` says whether it is the run's last step.
        """
        experiment = self._experiment
        instances = held_out(experiment, split)
        sampling = experiment.evaluated()
        score = scored(
            experiment,
            self._engine,
            self._runner,
            self._partners,
            f"{split} after step {step}",
            sampling=sampling,
            step=step,
            split=split,
            instances=instances,
            compiles=not step,
            hosts=self._hosts,
        )

        def write() -> bytes:
            content = written(step, score.episodes, (), experiment.tokenizer, experiment.alphas)
            self._folder.write_episodes(step, content, split)
            return b""

        self._hosts.told(f"episodes of {split} after step {step}", write)
        if self._hosts.index == 0:
            say(f"{split} after step {step}: {score}; {drawn_by(sampling)}")
        metrics = {f"{split}/{name}": value for name, value in score.record().items()}
        if split == "validation" and self._measures(step, last):
            metrics |= self._influence(step, score.episodes)
        return metrics

    def _measures(self, step: int, last: bool) -> bool:
        every = self._experiment.evaluation.influence_every
        return bool(every and step) and (step % every == 0 or last)

    def _influence(self, step: int, episodes: Sequence[Episode]) -> dict[str, float]:
        """Plays the episodes again with other words of each role, and says which alarms ring."""
        began = time.monotonic()
        experiment = self._experiment
        found = compared(
            experiment,
            self._engine,
            self._runner,
            self._partners,
            episodes,
            f"influence after step {step}",
            hosts=self._hosts,
        )
        metrics = figures(found)
        if self._hosts.index == 0:
            for line in alarms(metrics, experiment.task.workflow.roles).values():
                say(f"after step {step}: {line}")
        return metrics | {"perf/influence_s": time.monotonic() - began}


def held_out(experiment: Experiment, split: str, asked: int | None = None) -> int:
    """Returns how many instances of a split are scored: so many as are asked for, or as the config says.

    If there are fewer, it is all of them. Raises ConfigError if there are none.
    """
    settings = experiment.evaluation
    own = settings.validation_instances if split == "validation" else settings.instances
    return available(experiment.task, split, asked or own)


def scored(
    experiment: Experiment,
    engine: Engine,
    runner: Runner | None,
    partners: Partners | None,
    title: str,
    *,
    sampling: Mapping[str, Sampling],
    step: int,
    split: str,
    instances: int,
    episodes: int = 1,
    compiles: bool = True,
    hosts: Hosts = ALONE,
) -> Score:
    """Plays the first instances of a split with the weights that the engine holds, under a bar ``title``.

    ``compiles`` says whether the first episode has to wait for programs.
    """
    with Progress(title, instances * episodes, "episode", compiles=compiles) as progress:
        return evaluate(
            experiment.task,
            experiment.team,
            experiment.tokenizer,
            engine,
            sampling,
            seed=experiment.seed,
            step=step,
            split=split,
            instances=instances,
            episodes=episodes,
            runner=runner,
            on_episode=progress.advance,
            hosts=hosts,
            at_once=experiment.engine.at_once,
            partners=partners,
        )


def compared(
    experiment: Experiment,
    engine: Engine,
    runner: Runner | None,
    partners: Partners | None,
    episodes: Sequence[Episode],
    title: str,
    *,
    hosts: Hosts = ALONE,
    temperature: float | None = None,
) -> list[Compared]:
    """Compares episodes of an evaluation with ones in which a role says something else, for all roles.

    The engine holds the weights that played them. A group has as many siblings as in training.
    """
    sampling = experiment.evaluated(temperature)
    task, team = experiment.task, experiment.team
    player = evaluating(task, team, experiment.tokenizer, engine, sampling, experiment.seed, runner, partners)
    candidates = {role: own.candidates for role, own in experiment.by_role.items()}
    siblings = engine_propose(engine, sampling, candidates, experiment.seed)
    influence = Influence(player, siblings, episodes, hosts, experiment.engine.at_once)
    total = sum(len(influence.episodes_of(role)) for role, _ in influence.plan)
    with Progress(title, total, "episode") as progress:
        return [influence.measure(role, instead, progress.advance) for role, instead in influence.plan]
