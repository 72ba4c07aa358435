"""Runs a task through the contract that training relies on, before time is spent on it.

    python -m atgrpo_jax.tasks.check --gin_file=mine.gin

What it looks for is in docs/your-task.md; a problem is a line with the rule, the place and what was seen.
"""

import asyncio
import dataclasses
import itertools
import math
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from absl import flags

from atgrpo_jax import config
from atgrpo_jax.cli import gin_flags
from atgrpo_jax.cli import run as run_main
from atgrpo_jax.data import SPLITS
from atgrpo_jax.engines.local import LocalEngineConfig
from atgrpo_jax.errors import ConfigError, RunError
from atgrpo_jax.evaluation import available
from atgrpo_jax.experiment import Experiment
from atgrpo_jax.sandbox.base import End, Run, Runner
from atgrpo_jax.tasks.base import Step, Task, ToolTask, digest
from atgrpo_jax.tokens import Tokenizer
from atgrpo_jax.types import seed_of

# Of a reward's team and local part, and of their sums over an episode: the team's, and each role's.
BOUND = 10.0
# What no task should trip over, whatever it makes of it.
HOSTILE = (
    "", " ", "\n\n", "[", "]", "[]", "[[]]", "[" * 3000, "{" * 3000, "[0]" * 3000, "['']", "[\x00]",
    "[9999999999999999999999]", f"[{'9' * 9000}]", f"[[{'9' * 9000}, 1, 1]]", f"\\boxed{{{'9' * 190}}}",
    "[-1, -1, -1]", "[1e999, nan, inf]", "[None, True]", "é漢🙂\u202e[U]",
    "\\boxed{", "\\boxed{}", "\\boxed{" * 500, "\\boxed{\\frac{1}{0}}", "\\boxed{10**10**10}",
    "```", "```python\n", "```python\n```", "```python\nraise SystemExit(1)\n```",
    "```python\nprint([])\n```", "<|end|>", "####", "#### [U", "x" * 50_000,
    "__import__('os').abort()", "{{ 7 * 7 }} {% for %}",
)  # fmt: skip

# What a program may come to.
ENDS: tuple[End, ...] = ("ok", "error", "timeout", "limit", "crash")
OUTPUTS = ("", "\x00", "[" * 2000, "0\n" * 2000, "nan", "[true]", "{}")


@dataclasses.dataclass(frozen=True)
class Problem:
    rule: str
    seen: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.seen}"


def check(
    task: Task | ToolTask,
    runner: Runner | None = None,
    instances: int = 20,
    episodes: int = 60,
    bound: float = BOUND,
) -> list[Problem]:
    """Everything that a task can be shown to get wrong by itself; see ``check_experiment`` for the rest.

    Args:
      runner: of the programs that its roles write.
      instances: of each split.
      episodes: of each of the first training instances, in search of one that pays for failing.
      bound: of rewards, either way, in their own unit: of each, and of their sums over an episode.
    """
    return asyncio.run(_Check(task, runner, instances, episodes, bound).everything())


class _Check:
    def __init__(self, task, runner, instances, episodes, bound=BOUND):
        self._task, self._runner, self._episodes, self._bound = task, runner, episodes, bound
        self._instances = range(instances)
        self._held = {split: range(available(task, split, instances)) for split in SPLITS}
        self._problems: dict[Problem, None] = {}
        self._rng = random.Random(0)

    async def everything(self) -> list[Problem]:
        self._pure_instances()
        self._disjoint_splits()
        for index in self._instances:
            await self._play(index)
        for index in self._instances[:5]:
            await self._farm(index)
        return list(self._problems)

    def _found(self, rule: str, seen: str) -> None:
        if sum(problem.rule == rule for problem in self._problems) < 3:
            self._problems[Problem(rule, seen)] = None

    def _pure_instances(self) -> None:
        for split in SPLITS:
            first = [digest(self._task.instance(split, i)) for i in self._held[split]]
            again = [digest(self._task.instance(split, i)) for i in reversed(self._held[split])][::-1]
            for index, (one, other) in enumerate(zip(first, again, strict=True)):
                if one != other:
                    self._found("instances are pure", f"{split} {index} is another one the second time")

    def _disjoint_splits(self) -> None:
        seen: dict[str, str] = {}
        for split in SPLITS:
            for index in self._held[split]:
                name = digest(self._task.instance(split, index))
                place = seen.setdefault(name, f"{split} {index}")
                if not place.startswith(split):
                    self._found("splits share no instance", f"{split} {index} is {place}")

    async def _play(self, index: int) -> None:
        """Turn by turn: what every text leads to from one state, then on along a demonstration."""
        task = self._task
        instance = task.instance("train", index)
        state = task.initial(instance)
        if digest(state) != digest(task.initial(instance)):
            self._found("the first state is pure", f"train {index}")
        for turn in range(task.workflow.turns):
            done = False
            for role in task.workflow.order:
                step = await self._look(state, role, f"train {index}, turn {turn}, {role}")
                if step is None:
                    return
                state, done = step.state, step.done
                if done and not task.workflow.parallel:
                    return
            if done:
                return

    async def _look(self, state: Any, role: str, place: str) -> Step | None:
        task, before = self._task, digest(state)
        prompt = task.prompt(state, role)
        if prompt != task.prompt(state, role):
            self._found("prompts are pure", place)
        good = [task.demonstration(state, role, random.Random(seed_of(place, i))) for i in range(4)]
        if good[0] != task.demonstration(state, role, random.Random(seed_of(place, 0))):
            self._found("demonstrations depend on their rng only", place)
        texts = [*good, *HOSTILE, *(text for one in good for text in _spoilt(one, self._rng))]
        steps = [await self._step(state, role, text, place) for text in texts]
        for text, step in reversed(list(zip(texts, steps, strict=True))):
            again = await self._step(state, role, text, place)
            if repr(step) != repr(again):
                self._found(
                    "siblings do not disturb each other", f"{place}: {text[:80]!r} leads elsewhere later"
                )
        if digest(state) != before:
            self._found("states do not change", place)
        self._any_run(state, role, good, place)
        return steps[0]

    async def _step(self, state: Any, role: str, text: str, place: str) -> Step | None:
        try:
            return await self._act(state, role, text, place)
        except Exception as error:
            self._found("no text raises", f"{place}: {text[:80]!r}: {error!r}")
            return None

    async def _act(self, state: Any, role: str, text: str, place: str) -> Step:
        task = self._task
        if isinstance(task, ToolTask):
            runs: list[Run] = []
            while programs := task.programs(state, role, text, runs):
                if role not in task.tools:
                    self._found("tools names the roles that write programs", f"{place}: it is not among them")
                if self._runner is None:
                    raise RunError("its programs need a sandbox")
                runs += [await self._runner.run(program) for program in programs]
            step = task.act(state, role, text, runs)
        else:
            step = task.act(state, role, text)
        reward = step.reward
        if not all(map(math.isfinite, (reward.team, reward.local))):
            self._found("rewards are finite", f"{place}: {reward} for {text[:80]!r}")
        elif max(map(abs, (reward.team, reward.local))) > self._bound:
            self._found(
                "rewards are bounded", f"{place}: {reward} for {text[:80]!r}; {self._bound:.3g} is allowed"
            )
        if abs(sum(reward.parts.values()) - reward.local) > 1e-9:
            self._found("parts sum to the local reward", f"{place}: {reward}")
        if step.solved and not step.done:
            self._found("what is solved is done", f"{place}: {text[:80]!r}")
        return step

    def _any_run(self, state: Any, role: str, texts: Sequence[str], place: str) -> None:
        """Whatever becomes of programs, ``act`` takes it."""
        task = self._task
        if not isinstance(task, ToolTask):
            return
        for text, end, out in itertools.product(texts, ENDS, OUTPUTS):
            runs: list[Run] = []
            try:
                while programs := task.programs(state, role, text, runs):
                    runs += [Run(end, out, out, True)] * len(programs)
                task.act(state, role, text, runs)
            except Exception as error:
                self._found("no run raises", f"{place}: {end} {out[:20]!r}: {error!r}")

    async def _farm(self, index: int) -> None:
        """Among many episodes of one instance, none that fails may pay a role more than a solved one does."""
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
                self._found(
                    "failing pays less than solving",
                    f"train {index}: an episode that fails pays {role} {best[role]:.3g}, one that is solved "
                    f"{worst[role]:.3g}",
                )

    async def _episode(self, index: int, rng: random.Random) -> tuple[dict[str, float], bool] | None:
        """What one pays each role, the team's part included, and whether it is solved; None if something
        raised. Answers are more or less spoilt or, in every fourth episode, those that pay the most at once.
        """
        task = self._task
        state, solved, team = task.initial(task.instance("train", index)), False, 0.0
        local = dict.fromkeys(task.workflow.order, 0.0)
        spoil, tries = rng.choice(((0.0, 1), (0.3, 1), (1.0, 1), (0.5, 4)))
        for turn in range(task.workflow.turns):
            done = False
            for role in task.workflow.order:
                place = f"train {index}, turn {turn}, {role}"
                texts = [self._said(state, role, spoil, rng) for _ in range(tries)]
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

    def _said(self, state: Any, role: str, spoil: float, rng: random.Random) -> str:
        text = self._task.demonstration(state, role, rng)
        return rng.choice([*_spoilt(text, rng), rng.choice(HOSTILE)]) if rng.random() < spoil else text

    async def _best(self, state: Any, role: str, texts: Sequence[str], place: str) -> Step | None:
        """Of what the texts lead to, what pays the most and is no success, which would end it; None if one
        raised."""
        steps: list[Step] = []
        for text in texts:
            step = await self._step(state, role, text, place)
            if step is None:
                return None
            steps.append(step)
        return max(steps, key=lambda step: (not step.solved, step.reward.mixed(1.0)))

    def _bounded(self, place: str, team: float, local: Mapping[str, float]) -> None:
        """The sums of an episode are within what a single reward must be: more turns do not pay more."""
        for name, total in {"the team": team, **local}.items():
            if abs(total) > self._bound:
                seen = f"{place}: an episode pays {name} {total:.3g}; {self._bound:.3g} is allowed"
                self._found("rewards are bounded", seen)


def _spoilt(text: str, rng: random.Random) -> Iterator[str]:
    """Texts that are nearly an answer."""
    middle = len(text) // 2
    yield text[:middle]
    yield text * 3
    yield text[::-1]
    letters = list(text)
    for _ in range(1 + len(letters) // 6):
        if letters:
            letters[rng.randrange(len(letters))] = chr(rng.choice((32, 48, 57, 63, 91, 93, 85, 68, 0x301)))
    yield "".join(letters)


def check_experiment(
    x: Experiment, instances: int, say: Callable[[str], None] = lambda line: None, bound: float = BOUND
) -> list[Problem]:
    """``check``, and whether prompts and demonstrations fit what the experiment allows for them."""
    began = time.monotonic()
    made = [x.task.instance("train", index) for index in range(200)]
    seconds = max(time.monotonic() - began, 1e-9)
    say(f"{len(made) / seconds:.0f} instances/s")
    with x.running() as runner:
        problems = check(x.task, runner, instances, bound=bound)
        problems += asyncio.run(_lengths(x, runner, instances, say))
    return problems


async def _lengths(x: Experiment, runner: Runner | None, instances: int, say) -> list[Problem]:
    problems, longest, answers = [], 0, 0
    judge = _Check(x.task, runner, instances, 0)
    wordy = _wordy(x.tokenizer, x.rollout.max_tokens)
    for index, said in itertools.product(range(instances), (None, wordy)):
        state = x.task.initial(x.task.instance("train", index))
        done = False
        for turn in range(x.task.workflow.turns):
            for role in x.task.workflow.order:
                text = said or x.task.demonstration(state, role, random.Random(index))
                longest = max(longest, len(x.tokenizer.prompt_ids(x.task.prompt(state, role))))
                answers = max(answers, 0 if said else len(x.tokenizer.answer_ids(text)))
                step = await judge._act(state, role, text, f"train {index}, turn {turn}, {role}")
                state, done = step.state, step.done
            if done:
                break
    say(f"the longest prompt has {longest} tokens, the longest demonstration {answers}")
    limit = x.engine.max_prompt if isinstance(x.engine, LocalEngineConfig) else None
    if limit is not None and longest > limit:
        rule = "prompts fit LocalEngineConfig.max_prompt"
        problems.append(Problem(rule, f"one of {longest} tokens, and {limit} are allowed"))
    if answers > x.rollout.max_tokens:
        rule = "demonstrations fit RolloutConfig.max_tokens"
        problems.append(Problem(rule, f"one of {answers} tokens, and {x.rollout.max_tokens} are allowed"))
    return problems


def _wordy(tokenizer: Tokenizer, tokens: int) -> str:
    """A program that is as long as an answer may be: roles that are shown it must have it shortened."""
    line = "print('so long')\n"
    lines = tokens // max(1, len(tokenizer.answer_ids(line)) - 1)
    return f"```python\n{line * lines}```"


def digests(task: Task | ToolTask, instances: int) -> list[str]:
    """Of instances and first prompts: equal in every process."""
    lines = []
    for split in SPLITS:
        for index in range(available(task, split, instances)):
            instance = task.instance(split, index)
            prompts = [task.prompt(task.initial(instance), role) for role in task.workflow.order]
            lines.append(f"{split} {index} {digest(instance)} {digest(prompts)}")
    return lines


def main(
    argv: list[str],
    gin_file: flags.FlagHolder,
    gin_param: flags.FlagHolder,
    instances: int,
    bound: float,
    only: bool,
) -> None:
    if len(argv) > 1:
        raise ConfigError(f"unexpected argument {argv[1]!r}; see --help")
    if gin_file.value is None:
        raise ConfigError("--gin_file is needed, e.g. --gin_file=plan.gin")
    x = config.load(gin_file.value, gin_param.value)
    if only:
        print("\n".join(digests(x.task, instances)))
        return
    problems = [*check_experiment(x, instances, print, bound), *_elsewhere(x.task, instances)]
    for problem in problems:
        print(problem)
    if problems:
        raise RunError(f"{type(x.task).__name__} breaks the contract in {len(problems)} places")
    print(f"{type(x.task).__name__} keeps the contract")


def _elsewhere(task: Task | ToolTask, instances: int) -> list[Problem]:
    """Another process, which hashes strings otherwise, must make the same instances."""
    command = [sys.executable, "-m", "atgrpo_jax.tasks.check", *sys.argv[1:], "--digests"]
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    ended = subprocess.run(command, env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, text=True)
    rule = "every process makes the same instances"
    if ended.returncode:
        return [Problem(rule, ended.stderr.strip()[-500:])]
    ours, theirs = digests(task, instances), ended.stdout.splitlines()
    other = [one.rsplit(" ", 2)[0] for one, two in zip(ours, theirs, strict=True) if one != two]
    return [Problem(rule, f"{place} is another one") for place in other[:3]]


if __name__ == "__main__":  # flags of a module that tests and tasks import would be everybody's
    given = gin_flags()
    size = flags.DEFINE_integer("instances", 20, "How many instances of each split are looked at.")
    largest = flags.DEFINE_float("bound", BOUND, "Of rewards: of each, and of their sums over an episode.")
    named = flags.DEFINE_bool("digests", False, "Only print digests of instances and prompts.")
    run_main(lambda argv: main(argv, *given, size.value, largest.value, named.value))
