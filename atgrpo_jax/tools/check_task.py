"""Checks that a task keeps the contract that training relies on, before time is spent on it.

    python -m atgrpo_jax.tools.check_task --gin_file=mine.gin

docs/your-task.md lists the rules. A line is printed for each problem: rule, place, what was seen.
"""

import itertools
import os
import random
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from absl import flags

from atgrpo_jax.common import coroutines
from atgrpo_jax.common.cli import gin_flags, needed_gin_files, run_main
from atgrpo_jax.common.errors import RunError, UserError
from atgrpo_jax.common.progress import counted
from atgrpo_jax.rollout.evaluation import available
from atgrpo_jax.run import gin_config
from atgrpo_jax.run.experiment import Experiment
from atgrpo_jax.tasks.course import Course
from atgrpo_jax.tasks.protocol import Demonstrating, Task, ToolTask, digest
from atgrpo_jax.tasks.splits import SPLITS
from atgrpo_jax.tokens.tokens import Tokenizer
from atgrpo_jax.tools.children import watched
from atgrpo_jax.tools.contract import check
from atgrpo_jax.tools.hostile import LONGEST
from atgrpo_jax.tools.one_call import BOUND, RAISED, Calls, Tell, Violation

# A program that prints a list as long as an output may be.
SILENCE = 120.0  # seconds after which a call of the task counts as hanging
_PRINTS = f"```python\nprint(str(list(range({LONGEST})))[:{LONGEST - 2}] + ']')\n```"


def check_experiment(
    experiment: Experiment,
    instances: int,
    say: Callable[[str], None] = lambda line: None,
    bound: float = BOUND,
    tell: Tell = lambda kind, what, more: None,
) -> list[Violation]:
    """Returns where the task of an experiment breaks the contract, as rules and what was seen.

    It is ``check``, and it also looks whether prompts and demonstrations fit the experiment's limits.
    The command ``tools.check_task`` asks another process for the instances as well.

    Args:
      instances: how many of each split are looked at.
      say: is told how fast instances are made, and how long prompts and demonstrations are.
      bound: largest absolute value of a reward, and of the sums of rewards over an episode.
      tell: hears of each call before it is made, and of each problem.
    """
    quick = Calls(experiment.task, tell=tell)
    began = time.monotonic()
    with quick.going_on("instances can be made", "train"):
        made = [quick.instance("train", index) for index in range(200)]
        seconds = max(time.monotonic() - began, 1e-9)
        say(f"{len(made) / seconds:.0f} instances/s")
    if not isinstance(experiment.task, Demonstrating):
        say("it has no demonstration, so few good answers were tried, if any: play some in a test of yours")
    with experiment.running() as runner:
        problems = [*quick.problems, *check(experiment.task, runner, instances, bound=bound, tell=tell)]
        problems += coroutines.run(
            _lengths(experiment, Calls(experiment.task, runner, bound, tell), instances, say)
        )
    return list(dict.fromkeys(problems))


async def _lengths(
    experiment: Experiment, judge: Calls, instances: int, say: Callable[[str], None]
) -> list[Violation]:
    demonstrates = isinstance(experiment.task, Demonstrating)
    longest = 0
    answers: dict[str, int] = {}  # by role: tokens of the longest demonstration
    texts = (None, _wordy(experiment.tokenizer, experiment.longest_answer), _PRINTS)
    for index, said in itertools.product(range(instances), texts):
        with judge.going_on("prompts and demonstrations become tokens", f"train {index}"):
            course = Course(experiment.task, judge.initial(index))
            while speakers := judge.next(course, f"train {index}"):
                for role in speakers:
                    place = f"train {index}, turn {course.turn}, {role}"
                    text = said or judge.demonstration(course.state, role, place, random.Random(index))
                    prompt = judge.prompt(course.state, role, place)
                    name = experiment.task.workflow.seat(role)[0]
                    drawn = name not in experiment.team.partners
                    if drawn:
                        longest = max(longest, len(experiment.tokenizer.prompt_ids(prompt)))
                    if drawn and demonstrates and not said:
                        size = len(experiment.tokenizer.answer_ids(text))
                        answers[name] = max(answers.get(name, 0), size)
                    course.take(await judge.step(course.state, role, text, place))
    most = max(answers.values(), default=0)
    also = f", the longest demonstration {most}" if demonstrates else ""
    say(f"the longest prompt has {longest} tokens{also}")
    limit = experiment.engine.longest_prompt(experiment.longest_answer)
    if limit is not None and longest > limit:
        rule = f"prompts fit {type(experiment.engine).__name__}"
        judge.found(rule, f"one of {longest} tokens, and {limit} are allowed")
    for role, size in answers.items():
        limit = experiment.of_role(role).sampling.max_tokens
        if size > limit:
            rule = "demonstrations fit RolloutConfig.max_tokens"
            judge.found(rule, f"one of {role} of {size} tokens, and {limit} are allowed")
    return judge.problems


def _wordy(tokenizer: Tokenizer, tokens: int) -> str:
    """Returns a program as long as an answer may be; prompts that show it must shorten it."""
    line = "print('so long')\n"
    lines = tokens // max(1, len(tokenizer.answer_ids(line)) - 1)
    return f"```python\n{line * lines}```"


def digests(task: Task | ToolTask, instances: int) -> list[str]:
    """Returns a line for each instance, with digests of it and of its first prompts.

    They must be equal in every process.
    """
    lines = []
    for split in SPLITS:
        try:
            for index in range(available(task, split, instances)):
                instance = task.instance(split, index)
                course = Course(task, task.initial(instance))
                prompts = [task.prompt(course.state, role) for role in course.next()]
                lines.append(f"{split} {index} {digest(instance)} {digest(prompts)}")
        except RAISED:  # which the check itself reports
            lines.append(f"{split}, and more, - -")
    return lines


def main(
    argv: list[str],
    gin_file: flags.FlagHolder,
    gin_param: flags.FlagHolder,
    instances: int,
    bound: float,
    only: bool,
) -> None:
    experiment = gin_config.load(needed_gin_files(argv, gin_file), gin_param.value)
    if only:
        print("\n".join(digests(experiment.task, instances)))
        return
    problems: dict[Violation, None] = {}
    for problem in found_in_child(
        experiment, instances, print, bound, lambda: _elsewhere(experiment.task, instances)
    ):
        if problem not in problems:
            print(problem, flush=True)
        problems[problem] = None
    if problems:
        raise RunError(
            f"{type(experiment.task).__name__} breaks the contract in {counted(len(problems), 'place')}"
        )
    print(f"{type(experiment.task).__name__} keeps the contract")


def found_in_child(
    experiment: Experiment,
    instances: int,
    say: Callable[[str], None],
    bound: float = BOUND,
    more_found: Callable[[], list[Violation]] = list,
    silence: float = SILENCE,
) -> Iterator[Violation]:
    """Yields what ``check_experiment`` finds in a child process, as it is found, and then ``more_found``.

    If the task's code ends the child, or hangs for ``silence`` seconds, that is the last problem.
    ``more_found`` is called in this process, since it may take longer and start processes of its own:
    by then every call that it repeats has come to its end. Raises RunError if the check cannot be made.
    """

    def work(send: Callable[[Any], None]) -> None:
        def tell(*what: str) -> None:
            send(what)

        try:
            check_experiment(experiment, instances, lambda line: tell("say", line, ""), bound, tell)
        except UserError as error:
            tell("error", str(error), "")
        except Exception:
            tell("error", f"the check itself failed: {traceback.format_exc()}", "")

    place, call = "at the start", "the task"
    for told, ending in watched(work, silence):
        if ending:
            yield Violation("no text ends or holds up the process", f"{place}: {call} {ending}")
            return
        kind, what, more = told
        if kind == "found":
            yield Violation(what, more)
        elif kind == "say":
            say(what)
        elif kind == "error":
            raise RunError(what)
        else:
            place, call = what, more
    yield from more_found()


def _elsewhere(task: Task | ToolTask, instances: int) -> list[Violation]:
    """Returns instances that another process makes differently, as at most three problems.

    That process has another hash seed, so that sets of strings have another order there.
    """
    command = [sys.executable, "-m", "atgrpo_jax.tools.check_task", *sys.argv[1:], "--digests"]
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    ended = subprocess.run(command, env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, text=True)
    rule = "every process makes the same instances"
    if ended.returncode:
        last = ended.stderr.strip().splitlines()[-1:]
        return [Violation(rule, f"another one ends with code {ended.returncode}: {''.join(last)[:200]}")]
    ours = digests(task, instances)
    theirs = ended.stdout.splitlines()
    other = [
        (one or two).rsplit(" ", 2)[0]
        for one, two in itertools.zip_longest(ours, theirs, fillvalue="")
        if one != two
    ]
    why = "; the order of a set, and hash(), are others in each process"
    return [Violation(rule, f"{place} is another one{why}") for place in other[:3]]


if __name__ == "__main__":  # flags defined above would be there in all that import this
    given = gin_flags()
    size = flags.DEFINE_integer(
        "instances", 20, "How many instances of each split are looked at. E.g. --instances=5"
    )
    largest = flags.DEFINE_float(
        "bound",
        BOUND,
        "Largest absolute value of a reward, and of the sum of rewards over an episode. E.g. --bound=10",
    )
    named = flags.DEFINE_bool("digests", False, "Only print digests of instances and prompts. E.g. --digests")
    run_main(lambda argv: main(argv, *given, size.value, largest.value, named.value))
