"""Holds texts that must not break a task, and tries them, also in child processes."""

import contextlib
import dataclasses
import faulthandler
import json
import os
import random
import select
import signal
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from atgrpo_jax.sandbox.protocol import End, ProgramResult
from atgrpo_jax.tasks.protocol import ToolTask, Transition

LONGEST = 1 << 18  # characters: the longest text that is tried, and the longest output of a program
ROOM = 2000  # characters that a prompt may grow by when a long text grows
EVALUATED = 77  # exit code of a process that evaluated a text as Python

# Texts that no task may raise for, end or hang on; what it pays for them is its own affair.
HOSTILE = (
    "", " ", "\n\n", "[", "]", "[]", "[[]]", "[" * 3000, "{" * 3000, "[0]" * 3000, "['']", "[\x00]",
    "[9999999999999999999999]", f"[{'9' * 9000}]", f"[[{'9' * 9000}, 1, 1]]", f"\\boxed{{{'9' * 190}}}",
    "[-1, -1, -1]", "[1e999, nan, inf]", "[None, True]", "é漢🙂\u202e[U]",
    "\\boxed{", "\\boxed{}", "\\boxed{" * 500, "\\boxed{\\frac{1}{0}}", "\\boxed{10**10**10}",
    "```", "```python\n", "```python\n```", "```python\nraise SystemExit(1)\n```",
    "```python\nprint([])\n```", "<|end|>", "####", "#### [U", "x" * 50_000,
    "__import__('os').abort()", "{{ 7 * 7 }} {% for %}", "9**9**9**9", "exit()", "while True: pass",
)  # fmt: skip
_CALLS = (
    f"__import__('os')._exit({EVALUATED})",
    "[c for c in ().__class__.__base__.__subclasses__() if c.__name__ == '_wrap_close'][0].__init__"
    f".__globals__['_exit']({EVALUATED})",
)
_FORMS = (
    "%s",
    "[%s]",
    "[[0, 1, %s]]",
    "1 + %s",
    "\\boxed{%s}",
    "#### %s",
    "<answer>%s</answer>",
    "```python\n%s\n```",
)
# A task that evaluates one of these ends its process with the code EVALUATED.
EVALUATES = tuple(form % call for call in _CALLS for form in _FORMS)

# How a program may end, and what it may print.
ENDS: tuple[End, ...] = ("ok", "error", "timeout", "limit", "crash")
OUTPUTS = ("", "\x00", "[" * 2000, "0\n" * 2000, "nan", "[true]", "{}")
# These are repeated to any length. With "…" it is only the middle part that is repeated.
SHAPES = (
    "1", "1, ", "[", "[[1, 2], ", "(0, 1), ", "a", "a ", "0\n", "{", "\\boxed{1} ", "```\n", "x = 1\n", '"',
    "\\", "-", "1.", "$", "é", "[…1, …]", "[…'R', …]", "[…(0, 1), …]", "[…[0, 2, 3], …]", "[…x…]",
    "\\boxed{…1…}", "```python\n…x = 1\n…\n```", "…1…x",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Problem:
    rule: str
    seen: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.seen}"


def in_child(
    call: Callable[[Any], Any], given: Sequence[Any], patience: float
) -> Iterator[tuple[Any, Any, str]]:
    """Calls ``call`` with each of ``given`` in a child process.

    Yields (given, value, ""), or (given, None, how the process ended or that it hangs). A call
    hangs if it takes more than ``patience`` seconds. After one that hangs or ends the process, the
    others are tried in another child. Values go through JSON.
    """
    place = 0
    while place < len(given):
        child, answers = _forked(call, given[place:])
        try:
            while place < len(given):
                line = _line(answers, patience)
                if line:
                    yield given[place], json.loads(line), ""
                else:
                    ending = f"does not end within {patience:g} seconds"
                    if line is not None:
                        status, child = os.waitpid(child, 0)[1], 0
                        ending = _how(status)
                    yield given[place], None, ending
                place += 1
                if not line:
                    break
        finally:
            os.close(answers)
            if child:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)


def cause(error: BaseException) -> str:
    """Returns a line that says which exception was raised, and where."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({os.path.basename(frames[-1].filename)}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {str(error)[:200]}".rstrip(": ") + place


def _forked(call: Callable[[Any], Any], given: Sequence[Any]) -> tuple[int, int]:
    """Starts a child that writes a line for each of ``given``.

    Returns its process id and the descriptor to read the lines from.
    """
    answers, out = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fork warns of threads, which the child does not need
        child = os.fork()
    if child:
        os.close(out)
        return child, answers
    try:
        faulthandler.disable()
        quiet = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(quiet, stream)
        for one in given:
            os.write(out, json.dumps(call(one)).encode() + b"\n")
        os._exit(0)
    except SystemExit as error:
        os._exit(error.code if isinstance(error.code, int) else 1)
    finally:
        os._exit(1)


def _line(answers: int, patience: float) -> bytes | None:
    """Reads the next line; returns b"" if there are no more, None if it does not come in time."""
    line = b""
    while not line.endswith(b"\n"):
        if not select.select([answers], [], [], patience)[0]:
            return None
        letter = os.read(answers, 1)
        if not letter:
            return b""
        line += letter
    return line


def _how(status: int) -> str:
    if os.WIFSIGNALED(status):
        return f"ends the process by {signal.Signals(os.WTERMSIG(status)).name}"
    code = os.WEXITSTATUS(status)
    if code == EVALUATED:
        return "is evaluated as Python, in the process of the run"
    return f"ends the process with code {code}"


def acted(task: Any, state: Any, role: str, text: str, run: ProgramResult) -> Transition:
    """Returns the step that a text leads to, if all its programs end as ``run``."""
    if not isinstance(task, ToolTask):
        return task.act(state, role, text)
    runs: list[ProgramResult] = []
    while programs := task.programs(state, role, text, runs):
        runs += [run] * len(programs)
    return task.act(state, role, text, runs)


def next_prompts(task: Any, step: Transition, role: str, seed: int) -> dict[str, int]:
    """Returns the length of each role's next prompt, in characters.

    The turn in which ``role`` took ``step`` is first played to its end along demonstrations.
    """
    order = task.workflow.order
    for other in order[order.index(role) + 1 :]:
        if step.done:
            break
        text = task.demonstration(step.state, other, random.Random(seed))
        step = acted(task, step.state, other, text, ProgramResult("ok", text, "", True))
    return {other: sum(len(one["content"]) for one in task.prompt(step.state, other)) for other in order}


def growth(tried: Callable[[int], tuple[float, dict[str, int]]]) -> Iterator[tuple[str, str]]:
    """Yields (rule, how it is broken) for rules that a text breaks when it grows eightfold.

    ``tried`` takes a length. It returns the CPU seconds that a text of this length takes, and the
    characters of each role's next prompt. Times that look too long are measured again.
    """
    short, long = 1 << 12, 1 << 15
    (_, before), (seconds, after) = tried(short), tried(long)
    if seconds > 0.05:
        quick, slow = (min(tried(length)[0] for _ in range(3)) for length in (short, long))
        if slow > 0.02 + 20 * quick:
            yield (
                "time grows as texts do",
                f"takes {quick:.2g} s for {short:,} characters, {slow:.2g} s for {long:,}",
            )
    if any(after[role] > before[role] + ROOM for role in after):
        longer = tried(4 * long)[1]
        for role in after:
            if longer[role] > after[role] + ROOM:
                yield (
                    "prompts are bounded",
                    f"of {4 * long:,} characters makes {role}'s next prompt {longer[role]:,} long: cut what "
                    "others say, by prompts.shortened or prompts.bounded",
                )


def differ(one: str, other: str) -> str:
    """Returns a text on the first difference of two reprs that should be equal."""
    pairs = zip(one, other, strict=False)
    place = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
    start = max(0, place - 30)
    return (
        f"its repr is {one[start : start + 80]!r} and then {other[start : start + 80]!r}; equal states need "
        "equal ones: make it a frozen dataclass, or give it a __repr__"
    )


def spoilt(text: str, rng: random.Random) -> Iterator[str]:
    """Yields texts that are nearly an answer."""
    middle = len(text) // 2
    yield text[:middle]
    yield text * 3
    yield text[::-1]
    letters = list(text)
    for _ in range(1 + len(letters) // 6):
        if letters:
            letters[rng.randrange(len(letters))] = chr(rng.choice((32, 48, 57, 63, 91, 93, 85, 68, 0x301)))
    yield "".join(letters)
