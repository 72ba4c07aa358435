"""Checks a task by itself against the contract. The command for it is ``tools/check_task.py``."""

import asyncio
import contextlib
import itertools
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from atgrpo_jax.common.errors import RunError
from atgrpo_jax.common.types import Message, Outcome, Reward, seed_of
from atgrpo_jax.rollout.evaluation import available
from atgrpo_jax.sandbox.protocol import ProgramResult, Runner
from atgrpo_jax.tasks.protocol import Task, ToolTask, Transition, digest, missing
from atgrpo_jax.tasks.splits import SPLITS
from atgrpo_jax.tools.hostile import (
    ENDS,
    EVALUATES,
    HOSTILE,
    OUTPUTS,
    SHAPES,
    Problem,
    acted,
    cause,
    differ,
    growth,
    in_child,
    next_prompts,
    spoilt,
)

# Largest absolute value of a reward's team or local part, and of their sums over an episode.
BOUND = 10.0
PATIENCE = 30.0  # seconds that a call may take; it should take a moment
MOST_DEADLY = 4  # texts that end or hang the process; after so many, no more are tried

T = TypeVar("T")


class Broken(Exception):
    """Says that a call failed. The failure is already among the problems."""


def check(
    task: Task | ToolTask,
    runner: Runner | None = None,
    instances: int = 20,
    episodes: int = 60,
    bound: float = BOUND,
    patience: float = PATIENCE,
) -> list[Problem]:
    """Returns the problems of a task by itself; ``check_experiment`` finds others as well.

    Args:
      runner: runs the programs that its roles write.
      instances: how many of each split are looked at.
      episodes: how many of each of the first instances are played to find a failure that pays.
      bound: largest absolute value of a reward, and of the sums of rewards over an episode.
      patience: seconds after which a call for a text counts as hanging.
    """
    return asyncio.run(Contract(task, runner, instances, episodes, bound, patience).everything())


class Contract:
    """Checks one task; ``problems`` are those found so far, at most three of each rule."""

    def __init__(self, task, runner, instances, episodes=0, bound=BOUND, patience=PATIENCE):
        self._task, self._runner, self._episodes = task, runner, episodes
        self._bound, self._patience = bound, patience
        self._instances = range(instances)
        self._problems: dict[Problem, None] = {}
        self._deadly: dict[str, set[str]] = {}  # role -> texts not to try in this process
        self._rng = random.Random(0)

    @property
    def problems(self) -> list[Problem]:
        return list(self._problems)

    async def everything(self) -> list[Problem]:
        lacks = missing(self._task)
        if lacks:
            self.found("a task has all methods", f"{type(self._task).__name__} has no {', '.join(lacks)}")
            return self.problems
        for look in (self._pure_instances, self._disjoint_splits):
            with contextlib.suppress(Broken):
                look()
        for index in self._instances:
            with contextlib.suppress(Broken):
                await self._play(index)
        for index in self._instances[:5]:
            with contextlib.suppress(Broken):
                await self._farm(index)
        return self.problems

    def found(self, rule: str, seen: str) -> None:
        if sum(problem.rule == rule for problem in self._problems) < 3:
            self._problems[Problem(rule, seen)] = None

    def called(self, rule: str, place: str, call: Callable[..., T], *args: Any) -> T:
        """Calls a method of the task and returns its result. Raises Broken if it raises."""
        try:
            return call(*args)
        except (Exception, SystemExit) as error:
            self.found(rule, f"{place}: {cause(error)}")
            raise Broken from error

    # Instances

    def instance(self, split: str, index: int) -> Any:
        return self.called("instances can be made", f"{split} {index}", self._task.instance, split, index)

    def initial(self, index: int) -> Any:
        instance = self.instance("train", index)
        return self.called("the first state can be made", f"train {index}", self._task.initial, instance)

    def _held(self, split: str) -> range:
        count = self.called(
            "instances can be made", split, available, self._task, split, len(self._instances)
        )
        return range(count)

    def _pure_instances(self) -> None:
        for split in SPLITS:
            held = self._held(split)
            first = [digest(self.instance(split, i)) for i in held]
            again = [digest(self.instance(split, i)) for i in reversed(held)][::-1]
            for index, (one, other) in enumerate(zip(first, again, strict=True)):
                if one != other:
                    self.found("instances are pure", f"{split} {index} is another one the second time")

    def _disjoint_splits(self) -> None:
        seen: dict[str, str] = {}
        for split in SPLITS:
            for index in self._held(split):
                name = digest(self.instance(split, index))
                place = seen.setdefault(name, f"{split} {index}")
                if not place.startswith(split):
                    self.found("splits share no instance", f"{split} {index} is {place}")

    # Texts

    async def _play(self, index: int) -> None:
        """Plays an instance along demonstrations, and tries all texts in every state on the way."""
        task, state = self._task, self.initial(index)
        one, other = repr(state), repr(self.initial(index))
        if one != other:
            self.found("the first state is pure", f"train {index}: {differ(one, other)}")
        for turn in range(task.workflow.turns):
            done = False
            for role in task.workflow.order:
                place = f"train {index}, turn {turn}, {role}"
                if index < 3:
                    self._survive(state, role, place)
                step = await self._look(state, role, place)
                if index == turn == 0:
                    self._grow(state, role, place)
                state, done = step.state, step.done
                if done and not task.workflow.parallel:
                    return
            if done:
                return

    def prompt(self, state: Any, role: str, place: str) -> Sequence[Message]:
        """Returns a prompt of the task. Raises Broken if it is no list of messages."""
        rule = "prompts are lists of messages"
        found = self.called(rule, place, self._task.prompt, state, role)
        good = isinstance(found, Sequence) and not isinstance(found, str) and len(found) > 0
        if not good or not all(isinstance(m, Mapping) and {"role", "content"} <= set(m) for m in found):
            self.found(
                rule, f"{place}: {str(found)[:80]!r} is none, as [{{'role': 'user', 'content': ...}}] is"
            )
            raise Broken
        return found

    def demonstration(self, state: Any, role: str, place: str, rng: random.Random) -> str:
        """Returns a demonstration of the task. Raises Broken if it is no text."""
        rule = "demonstrations are texts"
        found = self.called(rule, place, self._task.demonstration, state, role, rng)
        if not isinstance(found, str):
            self.found(rule, f"{place}: {str(found)[:80]!r} is none")
            raise Broken
        return found

    async def _look(self, state: Any, role: str, place: str) -> Transition:
        before = digest(state)
        if self.prompt(state, role, place) != self.prompt(state, role, place):
            self.found("prompts are pure", place)
        seeds = [seed_of(place, i) for i in range(4)]
        good = [self.demonstration(state, role, place, random.Random(seed)) for seed in seeds]
        if good[0] != self.demonstration(state, role, place, random.Random(seeds[0])):
            self.found("demonstrations depend on their rng only", place)
        nearly = (text for one in good for text in spoilt(one, self._rng))
        texts = [*good, *self._hostile(role), *nearly]
        steps = [await self._step(state, role, text, place) for text in texts]
        for text, step in reversed(list(zip(texts, steps, strict=True))):
            again = await self._step(state, role, text, place)
            if repr(step) != repr(again):
                self.found(
                    "siblings do not disturb each other", f"{place}: {text[:80]!r} leads elsewhere later"
                )
        if digest(state) != before:
            self.found("states do not change", f"{place}: act has changed the state that it was given")
        self._any_run(state, role, good, place)
        if steps[0] is None:
            raise Broken
        return steps[0]

    async def step(self, state: Any, role: str, text: str, place: str) -> Transition:
        """Returns the step that a text leads to. Raises Broken if the task raises."""
        step = await self._step(state, role, text, place)
        if step is None:
            raise Broken
        return step

    def _hostile(self, role: str) -> list[str]:
        return [text for text in HOSTILE if text not in self._deadly.get(role, ())]

    async def _step(self, state: Any, role: str, text: str, place: str) -> Transition | None:
        try:
            return await self.act(state, role, text, place)
        except (Exception, SystemExit) as error:
            self.found("no text raises", f"{place}: {text[:80]!r}: {cause(error)}")
            return None

    async def act(self, state: Any, role: str, text: str, place: str) -> Transition:
        task = self._task
        if isinstance(task, ToolTask):
            runs: list[ProgramResult] = []
            while programs := task.programs(state, role, text, runs):
                if role not in task.tools:
                    self.found("tools names the roles that write programs", f"{place}: it is not among them")
                if self._runner is None:
                    raise RunError("its programs need a sandbox")
                runs += [await self._runner.run(program) for program in programs]
            step = task.act(state, role, text, runs)
        else:
            step = task.act(state, role, text)
        if not isinstance(step, Transition) or not isinstance(step.reward, Reward):
            raise TypeError(f"act returns {type(step).__name__}, and no Transition with a Reward")
        if not isinstance(step.outcome, Outcome):
            raise TypeError(f"the outcome is {step.outcome!r}, and no Outcome")
        self._pays(step, f"{place}: {{}} for {text[:80]!r}")
        if step.solved and not step.done:
            self.found("what is solved is done", f"{place}: {text[:80]!r}")
        return step

    def _pays(self, step: Transition, place: str) -> None:
        reward = step.reward
        seen = place.replace("{}", str(reward), 1)
        if not all(map(math.isfinite, (reward.team, reward.local))):
            self.found("rewards are finite", seen)
        elif max(map(abs, (reward.team, reward.local))) > self._bound:
            self.found("rewards are bounded", f"{seen}; {self._bound:.3g} is allowed")
        if abs(sum(reward.parts.values()) - reward.local) > 1e-9:
            self.found("parts sum to the local reward", seen)

    def _any_run(self, state: Any, role: str, texts: Sequence[str], place: str) -> None:
        """Checks that ``act`` raises for no way in which a program can end."""
        if not isinstance(self._task, ToolTask):
            return
        for text, end, out in itertools.product(texts, ENDS, OUTPUTS):
            try:
                acted(self._task, state, role, text, ProgramResult(end, out, out, True))
            except (Exception, SystemExit) as error:
                self.found("no run raises", f"{place}: {end} {out[:20]!r}: {cause(error)}")

    # In a child process

    def _survive(self, state: Any, role: str, place: str) -> None:
        """Tries texts, and outputs of programs, in child processes. Those that end or hang one are
        problems, and are not tried in this process."""
        deadly = self._deadly.setdefault(role, set())
        texts = [text for text in (*EVALUATES, *HOSTILE) if text not in deadly]

        def call(text: str) -> str | None:
            try:
                acted(self._task, state, role, text, ProgramResult("ok", text, text, True))
            except Exception as error:
                return cause(error)
            return None

        for text, raised, ending in in_child(call, texts, self._patience):
            if raised:
                self.found("no text raises", f"{place}: {text[:80]!r}: {raised}")
            if ending:
                deadly.add(text)
                self.found("no text ends or holds up the process", f"{place}: {text[:80]!r} {ending}")
            if len(deadly) >= MOST_DEADLY:
                deadly.update(HOSTILE)
                return

    def _grow(self, state: Any, role: str, place: str) -> None:
        """Checks long texts and outputs: time may grow as they do, and prompts must not grow."""
        good = self.demonstration(state, role, place, random.Random(seed_of(place)))
        kinds = ("text", "output") if isinstance(self._task, ToolTask) else ("text",)

        def tried(kind: str, shape: str, length: int) -> tuple[float, dict[str, int]]:
            before, middle, after = shape.split("…") if "…" in shape else ("", shape, "")
            long = before + (middle * length)[:length] + after
            text, run = (
                (long, ProgramResult("ok", ""))
                if kind == "text"
                else (good, ProgramResult("ok", long, long, True))
            )
            began = time.process_time()
            step = acted(self._task, state, role, text, run)
            seconds = time.process_time() - began
            return seconds, next_prompts(self._task, step, role, seed_of(place))

        def call(given: tuple[str, str]) -> list[tuple[str, str]]:
            try:
                return list(growth(lambda length: tried(*given, length)))
            except Exception as error:
                return [("no text raises", f"ends in {cause(error)}")]

        bad = 0
        for (kind, shape), seen, ending in in_child(
            call, list(itertools.product(kinds, SHAPES)), self._patience
        ):
            what = f"{place}: a long {kind} of {shape!r}"
            bad += bool(ending or seen)
            if ending:
                self.found("no text ends or holds up the process", f"{what} {ending}")
            for rule, how in seen or ():
                self.found(rule, f"{what} {how}")
            if bad >= MOST_DEADLY:
                return

    # Rewards

    async def _farm(self, index: int) -> None:
        """Plays an instance many times: no failed one may pay a role more than a solved one."""
        best: dict[str, float] = {}
        worst: dict[str, float] = {}
        for episode in range(self._episodes):
            ended = await self._episode(index, random.Random(seed_of("farm", index, episode)))
            if ended is None:
                return
            earned, solved = ended
            for role, total in earned.items():
                if solved:
                    worst[role] = min(total, worst.get(role, math.inf))
                else:
                    best[role] = max(total, best.get(role, -math.inf))
        for role in self._task.workflow.order:
            if best.get(role, -math.inf) > worst.get(role, math.inf) + 1e-9:  # beyond rounding
                self.found(
                    "failing pays less than solving",
                    f"train {index}: an episode that fails pays {role} {best[role]:.3g}, one that is solved "
                    f"{worst[role]:.3g}",
                )

    async def _episode(self, index: int, rng: random.Random) -> tuple[dict[str, float], bool] | None:
        """Plays an episode; returns each role's reward, the team's included, and if it is solved.
        Returns None if the task raised. Answers are spoilt with a probability that each episode
        draws. In about a quarter of the episodes a role takes the best-paid of four answers."""
        task = self._task
        state, solved, team = self.initial(index), False, 0.0
        local = dict.fromkeys(task.workflow.order, 0.0)
        spoil, tries = rng.choice(((0.0, 1), (0.3, 1), (1.0, 1), (0.5, 4)))
        for turn in range(task.workflow.turns):
            done = False
            for role in task.workflow.order:
                place = f"train {index}, turn {turn}, {role}"
                texts = [self._said(state, role, place, spoil, rng) for _ in range(tries)]
                step = await self._best(state, role, texts, place)
                if step is None:
                    return None
                state, solved, done = step.state, step.solved, step.done
                local[role] += step.reward.local
                team += step.reward.team
                if done and not task.workflow.parallel:
                    break
            if done:
                break
        self._bounded(f"train {index}", team, local)
        return {role: team + own for role, own in local.items()}, solved

    def _said(self, state: Any, role: str, place: str, spoil: float, rng: random.Random) -> str:
        text = self.demonstration(state, role, place, rng)
        hostile = self._hostile(role) or [""]
        return rng.choice([*spoilt(text, rng), rng.choice(hostile)]) if rng.random() < spoil else text

    async def _best(self, state: Any, role: str, texts: Sequence[str], place: str) -> Transition | None:
        """Returns the best-paid step; one that solves, and so ends the episode, only if all do.
        Returns None if the task raised."""
        steps: list[Transition] = []
        for text in texts:
            step = await self._step(state, role, text, place)
            if step is None:
                return None
            steps.append(step)
        return max(steps, key=lambda step: (not step.solved, step.reward.mixed(1.0)))

    def _bounded(self, place: str, team: float, local: Mapping[str, float]) -> None:
        """Checks that an episode's sums keep the bound of one reward: turns must not add up."""
        for name, total in {"the team": team, **local}.items():
            if abs(total) > self._bound:
                seen = f"{place}: an episode pays {name} {total:.3g}; {self._bound:.3g} is allowed"
                self.found("rewards are bounded", seen)
