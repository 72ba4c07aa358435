"""Says where the policies of a fork start: from which policies of which runs, at which steps."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

from atgrpo_jax.common.copies import absolute
from atgrpo_jax.common.errors import ConfigError
from atgrpo_jax.rollout.team import BASE
from atgrpo_jax.run.experiment import Experiment, first_difference
from atgrpo_jax.run.found import FoundRun
from atgrpo_jax.tokens.same_ids import check_same_ids
from atgrpo_jax.tokens.tokens import FolderTokenizer

ALL = ""  # stands for all policies, where a person names none


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a person asks for: run folders and steps, by policy or role, or for ALL."""

    runs: Mapping[str, str]
    steps: Mapping[str, str]

    @classmethod
    def parse(cls, runs: str, steps: str | None) -> "Asked":
        """Reads "RUN" or "mover=RUN_A,scout=RUN_B", and "100", "best" or "mover=100,scout=best".

        Raises ConfigError.
        """
        found = {name: absolute(run) for name, run in by_name("--from", runs).items()}
        of_steps = {} if steps is None else by_name("--from_step", steps)
        unknown = sorted(set(of_steps) - {ALL, *found})
        if unknown:
            raise ConfigError(f"--from_step={steps}: --from names no {', '.join(unknown)}")
        return cls(found, of_steps)

    def step(self, name: str) -> str | None:
        return self.steps.get(name, self.steps.get(ALL))


@dataclasses.dataclass(frozen=True)
class Start:
    """Where parameters come from: a policy in a checkpoint of a run, or the base of its adapters.

    ``takes`` is "weights", "base" (of adapters), "adapter", or "merged" (an adapter in its base).
    ``checkpoint`` is the checkpoint's digest.
    """

    run: str
    step: int
    checkpoint: str
    policy: str
    takes: str


def starts(experiment: Experiment, asked: Asked) -> dict[str, Start]:
    """Returns where each of ``Experiment.initial_names`` starts, and each adapter that is not fresh.

    Adapters have the names of their policies. Raises ConfigError if something does not fit.
    """
    found: dict[str, Start] = {}
    under: dict[Start, str] = {}  # what is to be under adapters -> for which policy
    runs = {path: FoundRun(path) for path in set(asked.runs.values())}
    for policy, (name, roles) in _named(experiment, asked).items():
        run = runs[asked.runs[name]]
        step = run.step_of(asked.step(name))
        theirs = _speaker(run.experiment, roles, policy, asked.runs[name])
        adapted = run.experiment.initial_name(theirs) != theirs
        here = functools.partial(Start, asked.runs[name], step, run.checkpoints.digest(step))
        if policy != BASE and experiment.initial_name(policy) == policy:
            found[policy] = here(theirs, "merged" if adapted else "weights")
            _check(experiment, policy, run.experiment, theirs)
            continue
        if adapted and policy != BASE:
            found[policy] = here(theirs, "adapter")
            lora = first_difference("lora", experiment.lora, run.experiment.lora)
            if lora:
                raise ConfigError(
                    f"policy {policy} cannot start from an adapter of {run.folder.path}: {lora}"
                )
        under.setdefault(here(BASE, "base") if adapted else here(theirs, "weights"), policy)
        _check(experiment, BASE, run.experiment, theirs)
    if len(under) > 1 and any(start.takes != "base" for start in under):
        raise ConfigError(
            f"adapters are on one {BASE}, and {' and '.join(under.values())} would bring different ones; "
            f"name one policy alone, as in --from={next(iter(under.values()))}=RUN"
        )
    if under:
        found[BASE] = next(iter(under))
    for initial in experiment.initial_names:
        if initial not in found and experiment.folder(initial) is None:
            raise ConfigError(
                f"--from says nothing of {initial}, which has no model folder either and would begin at "
                f"random; name a run for it: --from=...,{initial}=RUN"
            )
    return found


def by_name(flag: str, text: str) -> dict[str, str]:
    """Reads "VALUE" or "NAME=VALUE,NAME=VALUE". A path with a / before its first = is one value."""
    if "=" not in text or "/" in text.partition("=")[0]:
        return {ALL: text}
    found = {}
    for piece in text.split(","):
        name, _, value = piece.partition("=")
        if not (name and value) or name in found:
            raise ConfigError(f"{flag}={text}: expected one value, or NAME=VALUE,NAME=VALUE of several names")
        found[name] = value
    return found


def _named(experiment: Experiment, asked: Asked) -> dict[str, tuple[str, Sequence[str]]]:
    """Returns for each policy that is asked for: the name that it is asked for by, and its roles."""
    team = experiment.team
    drawn = team.drawn(experiment.task.workflow.roles)
    own = {policy: [role for role in drawn if team.policy(role) == policy] for policy in experiment.policies}
    if ALL in asked.runs:
        return {policy: (ALL, roles) for policy, roles in own.items()}
    found: dict[str, tuple[str, Sequence[str]]] = {}
    for name in asked.runs:
        policy = name if name in own else team.policy(name) if name in drawn else name
        if policy not in own and policy not in experiment.initial_names:
            known = ", ".join(dict.fromkeys((*own, *drawn, *experiment.initial_names)))
            raise ConfigError(f"--from: there is no policy or role {name}; there are {known}")
        if policy in found:
            raise ConfigError(
                f"--from: {found[policy][0]} and {name} are both of policy {policy}; name one of them"
            )
        adapted = [role for role in drawn if experiment.initial_name(team.policy(role)) == BASE]
        found[policy] = name, own.get(name) or ([name] if name in drawn else adapted)
    return found


def _speaker(origin: Experiment, roles: Sequence[str], policy: str, run: str) -> str:
    """Returns the policy of another run that speaks for our roles, or else the one of our policy's name."""
    drawn = origin.team.drawn(origin.task.workflow.roles)
    found = {origin.team.policy(role) for role in roles if role in drawn}
    found = found or {policy} & set(origin.policies) or set(origin.policies)
    if len(found) > 1:
        names = ", ".join(sorted(found))
        raise ConfigError(
            f"{policy} cannot start from {run}, where several policies ({names}) speak for its roles; name "
            f"one of these roles: --from=ROLE={run}"
        )
    return found.pop()


def _check(ours: Experiment, initial: str, theirs: Experiment, policy: str) -> None:
    """Raises ConfigError if a policy's weights do not fit an initial name, or mean other tokens."""
    other = theirs.initial_name(policy)
    sizes = [(ours, ours.architecture(initial)), (theirs, theirs.architecture(other))]
    own, found = (dataclasses.replace(a, vocab_size=a.vocab_size or x.tokenizer.vocab_size) for x, a in sizes)
    differs = first_difference("model", own, found)
    differs = differs or first_difference(
        "Compute.param_dtype", ours.compute.param_dtype, theirs.compute.param_dtype
    )
    if differs:
        raise ConfigError(f"{initial} cannot start from policy {policy}: {differs}")
    if isinstance(ours.tokenizer, FolderTokenizer) and isinstance(theirs.tokenizer, FolderTokenizer):
        check_same_ids(ours.tokenizer, theirs.tokenizer.folder)
    elif ours.tokenizer.digest() != theirs.tokenizer.digest():
        raise ConfigError(f"{initial} cannot start from policy {policy}: it has another tokenizer")
