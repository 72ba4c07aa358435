"""Makes what plays the episodes of a training step, as an experiment says."""

from collections.abc import Callable, Sequence

from atgrpo_jax.common.hosts import Hosts
from atgrpo_jax.common.types import Episode, Group, seed_of
from atgrpo_jax.credit.groups import with_signal
from atgrpo_jax.engines.protocol import Engine
from atgrpo_jax.partners.answers import Partners
from atgrpo_jax.rollout.counterfactual import Counterfactual
from atgrpo_jax.rollout.curriculum import Lessons, Picked, picked, size_of
from atgrpo_jax.rollout.player import Player
from atgrpo_jax.rollout.rollout import engine_propose, train_indices
from atgrpo_jax.rollout.rollouts import Rollouts
from atgrpo_jax.run.experiment import Experiment
from atgrpo_jax.sandbox.protocol import Runner


def picking(experiment: Experiment) -> Callable[[int, Lessons], Picked]:
    """Returns what picks the instances of a step. Raises ConfigError if their pool cannot be had."""
    settings = experiment.rollout
    curriculum = settings.curriculum
    each, rounds = settings.instances, settings.rounds
    if curriculum is None:
        numbers = range(rounds)
        return lambda step, _: Picked([train_indices(step, each, rounds, number) for number in numbers])
    size = size_of(curriculum, experiment.task, each * rounds)

    def pick(step: int, lessons: Lessons) -> Picked:
        seed = seed_of("instances", experiment.seed, step)
        return picked(curriculum, lessons, size, seed, each, rounds)

    return pick


def updating(experiment: Experiment) -> Callable[[Group], bool]:
    """Returns what says of a group whether its step updates the policy that drew it."""
    team = experiment.team
    roles = experiment.task.workflow.roles
    return lambda group: group.origin.policy in team.updated(group.origin.key.step, roles)


def rollouts_of(
    experiment: Experiment,
    pick: Callable[[int, Lessons], Picked],
    engine: Engine,
    runner: Runner | None,
    partners: Partners | None,
    hosts: Hosts,
) -> Rollouts:
    """Returns the rollouts of a run: a group has K candidates, or an instance K episodes of one."""
    settings = experiment.rollout
    episodes = 1 if settings.tree else settings.candidates
    player = training(experiment, engine, runner, partners)
    at_once = experiment.engine.at_once
    instances_at_once = None if at_once is None else -(-at_once // (experiment.most_candidates * episodes))

    def enough(played: Sequence[Episode]) -> bool:
        found = with_signal(
            played, alpha=experiment.alphas, rule=experiment.credit, updates=updating(experiment)
        )
        return found >= settings.least_signal

    return Rollouts(player, engine, pick, episodes, enough, hosts, instances_at_once)


def training(
    experiment: Experiment, engine: Engine, runner: Runner | None, partners: Partners | None
) -> Player:
    """Returns what plays the episodes of a training step."""
    settings = experiment.rollout
    by_role = experiment.by_role
    sampling = {role: own.sampling for role, own in by_role.items()}
    candidates = {role: own.candidates if settings.tree else 1 for role, own in by_role.items()}
    first = {role: own.first_candidates or candidates[role] for role, own in by_role.items()}
    further = None
    if first != candidates:
        further = engine_propose(engine, sampling, candidates, experiment.seed, after=first)
    share = experiment.credit.counterfactual
    alone = engine_propose(engine, sampling, 1, experiment.seed)
    return Player(
        experiment.task,
        experiment.team,
        experiment.tokenizer,
        engine_propose(engine, sampling, first, experiment.seed),
        sampling,
        experiment.seed,
        runner=runner,
        select=settings.select,
        exclude=settings.exclude,
        partners=partners,
        further=further,
        afterwards=Counterfactual(alone, share, experiment.seed) if share else None,
    )
