"""Mathematical problems with one answer: some roles reason, others write programs, all see what came before.

The task of arXiv 2510.11062, with the faults of its reference code mended: agreement ends an episode, and
only a right answer is success; what is trained on is not what is tested on; nothing that a model wrote is
evaluated in the trainer's own process.

Roles, by how their names begin: ``tool`` writes a program that prints the answer, ``reasoner`` ends with a
boxed answer, and so does ``judge``, who sees what the others said in the same turn. Several of a kind are
numbered: ``reasoner1``, ``reasoner2``.
"""

import dataclasses
import functools
import itertools
import json
import math
import random
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from importlib.util import find_spec
from typing import Any

from atgrpo_jax.checks import check_types, require
from atgrpo_jax.data import absolute, files_of, pick, read_rows, rows_of, words_of
from atgrpo_jax.sandbox.base import Program, Run
from atgrpo_jax.tasks import prompts
from atgrpo_jax.tasks.base import Step, Workflow
from atgrpo_jax.tasks.games import in_split, python_block
from atgrpo_jax.types import Message, Outcome, Reward, seed_of

TOOL, REASONER, JUDGE = KINDS = ("tool", "reasoner", "judge")
SHOWN = 1000  # characters of what was said that others are shown
PROGRAM_SHOWN = 2000
LONGEST = 200  # characters of an answer
TOLERANCE = Fraction(1, 10**6)  # relative, where one number is a decimal fraction

# Says whether each part of one answer is a part of the other; runs in the sandbox, where a hostile one can do
# no harm.
_COMPARE = """
import json
from math_verify import parse, verify

def read(text):
    return parse("$" + text + "$", parsing_timeout=None)

def near(one, other):
    try:
        return abs(float(one[0]) - float(other[0])) <= tolerance
    except Exception:
        return False

def found(part):
    for place, other in enumerate(others):
        if verify(part, other, timeout_seconds=None) or tolerance and near(part, other):
            del others[place]
            return True
    return False

parts, others, tolerance = json.loads(input())
parts, others = list(map(read, parts)), list(map(read, others))
print(int(all(map(found, parts))))
"""
_WARM_UP = (
    "from math_verify import parse, verify\n"
    r"verify(*(parse(t, parsing_timeout=None) for t in (r'$\frac{1}{2}$', '$0.5$')), timeout_seconds=None)"
)


@dataclasses.dataclass(frozen=True)
class Problem:
    id: str
    question: str
    answer: str  # LaTeX, or a number
    # How answers are compared. Not in the ``repr``, by which splits of made-up problems are drawn.
    multiple: bool = dataclasses.field(default=False, repr=False)  # it is a list of several, in any order
    tolerance: float = dataclasses.field(default=0.0, repr=False)  # of numbers, absolute, if there is one


@dataclasses.dataclass(frozen=True)
class Said:
    """What a role said in a turn. ``answer`` is None if there was none."""

    role: str
    text: str = ""
    code: str = ""
    output: str = ""
    answer: str | None = None
    right: bool = False
    like: str | None = None  # the first answer of the turn that is equal to this one
    parts: tuple[tuple[str, float], ...] = ()  # of its reward


@dataclasses.dataclass(frozen=True)
class State:
    problem: Problem
    turns: tuple[tuple[Said, ...], ...] = ()  # complete ones
    said: tuple[Said, ...] = ()  # in this turn


@dataclasses.dataclass(frozen=True)
class Math:
    """Task and config. A role's local reward (arXiv 2510.11062, appendix):

    reasoner, judge   form * [boxed an answer] + match * [it is right]
    tool              builds * [its program is Python] + runs * [it ends well] + tool_match * [it prints the
                      right answer]

    and the team's is 1 if the team's answer is right: of the last turn in which anyone gave one the judge's,
    else the last reasoner's, else the last tool's. Each part is paid as the change since the role (or the
    team) spoke before. That takes the same off all candidates of a group, so advantages are those of the sums
    above; and what an episode pays is where it ends, so that putting off agreement pays nothing.

    The episode ends when all who spoke in a turn agree, and with the last turn; it is solved if the team's
    answer is right then.
    """

    workflow: Workflow = Workflow(order=("tool", "reasoner"), turns=4, parallel=True)
    prompts: str = "math/full"
    # Files of problems of each split; see docs/data.md. Without any: sums that are made up.
    files: Mapping[str, str | tuple[str, ...]] = dataclasses.field(default_factory=dict)
    terms: int = 3  # of a made-up sum, at most
    largest: int = 20  # number in one
    seed: int = 0
    form: float = 0.2
    match: float = 0.8
    builds: float = 0.1
    runs: float = 0.1
    tool_match: float = 0.8
    demonstration_error: float = 0.3  # probability that a demonstrated answer is a wrong one
    prompts_digest: str = dataclasses.field(init=False, default="")  # of the templates' content

    def __post_init__(self):
        check_types(self)
        unknown = sorted({role for role in self.workflow.order if kind_of(role) not in KINDS})
        require(self, "workflow", not unknown, f"roles are {', '.join(KINDS)} and a number, not {unknown}")
        judges = [role for role in self.workflow.order if kind_of(role) == JUDGE]
        last = not judges or (judges == [self.workflow.order[-1]] and not self.workflow.parallel)
        require(self, "workflow", last, "a judge is one, speaks last, and hears the others: not parallel")
        require(self, "terms", self.terms >= 2, "must be at least 2")
        require(self, "largest", self.largest >= 2, "must be at least 2")
        require(self, "demonstration_error", 0 <= self.demonstration_error <= 1, "must be in [0, 1]")
        for name in ("form", "match", "builds", "runs", "tool_match"):
            require(self, name, getattr(self, name) >= 0, "must not be negative")
        missing = find_spec("math_verify") is None
        require(self, "files", not missing, 'needs math-verify: pip install "atgrpo_jax[math]"')
        object.__setattr__(self, "files", absolute(self.files))
        prompts.settle(self, list(map(kind_of, self.workflow.order)), next(iter(self.files), "train"))

    def instance(self, split: str, index: int) -> Problem:
        """Raises ValueError for a split without files, or naming the line and field of a bad row."""
        if self.files:
            return pick(rows_of(files_of(self.files), split, read, key), self.seed, split, index)
        return _sum(self.terms, self.largest, self.seed, split, index)

    def initial(self, instance: Problem) -> State:
        return State(instance)

    # Play

    @property
    def tools(self) -> tuple[str, ...]:
        return self.workflow.order  # also those who only answer: answers are compared in the sandbox

    packages = ("math_verify",)
    warm_up = _WARM_UP

    def prompt(self, state: State, role: str) -> list[Message]:
        kind = kind_of(role)
        rounds = [*state.turns, *([state.said] if kind == JUDGE and state.said else [])]
        shown = [[_shown(said) for said in turn] for turn in rounds]
        return prompts.render(self.prompts, kind, {"question": state.problem.question, "rounds": shown})

    def programs(self, state: State, role: str, text: str, runs: Sequence[Run]) -> list[Program]:
        if kind_of(role) == TOOL and not runs:
            code = python_block(text)
            return [] if code is None else [Program(code)]
        answer = _answer(role, text, runs)
        if answer is None or len(runs) > (kind_of(role) == TOOL):
            return []
        # One for each: an answer of somebody else's that cannot be read is no reason to miss the truth.
        return [_algebra(state.problem, other, answer) for other in self._unclear(state, answer)]

    def act(self, state: State, role: str, text: str, runs: Sequence[Run]) -> Step:
        said, outcome = self._hear(state, role, text, runs)
        after = dataclasses.replace(state, said=(*state.said, said))
        before = _last(state, role)
        paid = dict(before.parts) if before is not None else {}
        parts = {name: value - paid.get(name, 0.0) for name, value in said.parts}
        team = float(_right(after)) - float(_right(state))
        done = False
        if role == self.workflow.order[-1]:
            likes = {said.like for said in after.said}
            agreed = len(after.said) > 1 and len(likes) == 1 and None not in likes
            done = agreed or len(after.turns) + 1 == self.workflow.turns
            if not done:
                after = State(state.problem, (*after.turns, after.said))
        return Step(after, Reward.of(team, **parts), outcome, done, done and _right(after))

    def demonstration(self, state: State, role: str, rng: random.Random) -> str:
        answer = state.problem.answer
        if rng.random() < self.demonstration_error:
            number = as_number(answer)
            answer = str(rng.randrange(100) if number is None else number + rng.choice((-2, -1, 1, 2)))
        if kind_of(role) == TOOL:
            return f"```python\nprint({answer!r})\n```"
        return f"\\boxed{{{answer}}}"

    def _others(self, state: State) -> list[str]:
        """What an answer is compared with: the truth, then the different ones of this turn."""
        return [state.problem.answer, *dict.fromkeys(said.like for said in state.said if said.like)]

    def _unclear(self, state: State, answer: str) -> list[str]:
        """Those of the others that take algebra to compare with."""
        return [other for other in self._others(state) if plainly_equal(state.problem, other, answer) is None]

    def _hear(self, state: State, role: str, text: str, runs: Sequence[Run]) -> tuple[Said, Outcome]:
        kind, answer = kind_of(role), _answer(role, text, runs)
        right, like = False, answer
        outcome = Outcome.OK if answer is not None else Outcome.INVALID
        if answer is not None:
            judged = zip(self._unclear(state, answer), runs[kind == TOOL :], strict=True)
            algebra = {other: run.end == "ok" and run.stdout.strip() == "1" for other, run in judged}
            truth, *others = (
                (other, algebra[other] if other in algebra else plainly_equal(state.problem, other, answer))
                for other in self._others(state)
            )
            right = bool(truth[1])
            like = next((other for other, same in others if same), answer)
        if kind != TOOL:
            parts = ("form", self.form * (answer is not None)), ("match", self.match * right)
            return Said(role, text, answer=answer, right=right, like=like, parts=parts), outcome
        run = runs[0] if runs else Run("error")
        if run.end == "timeout":
            outcome = Outcome.TOOL_TIMEOUT
        made = (
            ("builds", self.builds * run.built),
            ("runs", self.runs * (run.end == "ok")),
            ("match", self.tool_match * right),
        )
        output = run.stdout or run.stderr
        return Said(role, text, python_block(text) or "", output, answer, right, like, made), outcome


def _shown(said: Said) -> dict[str, Any]:
    return {
        "role": said.role,
        "kind": kind_of(said.role),
        "text": prompts.shortened(said.text, SHOWN),
        "code": prompts.shortened(said.code, PROGRAM_SHOWN),
        "output": prompts.shortened(said.output, SHOWN),
        "answer": said.answer,
    }


def kind_of(role: str) -> str:
    return role.rstrip("0123456789")


def boxed(text: str) -> str | None:
    """What is in the last ``\\boxed{...}`` of a text; None if there is none, or it is empty."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth, begin = 1, start + len("\\boxed{")
    for place in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return _short(text[begin:place])
    return None


def as_number(text: str) -> Fraction | None:
    """Of a plain number: ``-3``, ``1,234.5``, ``3/4``, ``1e3``."""
    plain = text.strip().strip("$")
    if re.fullmatch(r"-?\d{1,3}(,\d{3})+(\.\d+)?", plain):
        plain = plain.replace(",", "")
    if not re.fullmatch(r"[-+]?\d{1,100}(\.\d{1,100})?(e[-+]?\d{1,2})?|[-+]?\d{1,100}/\d{1,100}", plain):
        return None
    try:
        return Fraction(plain)
    except ZeroDivisionError:
        return None


def plainly_equal(problem: Problem, one: str, other: str) -> bool | None:
    """Whether two answers to a problem are equal; None where it takes algebra to say."""
    ours, theirs = _unmatched(problem, one, other)
    if len(ours) != len(theirs):
        return False

    def differs(part: str) -> bool:
        return all(plainly_same(part, another, problem.tolerance) is False for another in theirs)

    return True if not ours else False if any(map(differs, ours)) else None


def plainly_same(one: str, other: str, tolerance: float = 0.0) -> bool | None:
    """Whether two texts are the same, or the same number: exactly, to ``TOLERANCE`` where one is a decimal
    fraction, or to an absolute tolerance. None where it takes algebra to say."""
    if _unspaced(one) == _unspaced(other):
        return True
    first, second = as_number(one), as_number(other)
    if first is None or second is None:
        return None
    allowed = Fraction(str(tolerance))
    whole = first.denominator == second.denominator == 1
    if not whole and re.search(r"\.|e-", one + " " + other):
        allowed = max(allowed, TOLERANCE * max(abs(first), abs(second)))
    return abs(first - second) <= allowed


def listed(text: str) -> list[str]:
    """The answers in a list of several: what commas, "and" and "or" part outside of brackets. ``a \\pm b`` is
    two."""
    text = re.sub(r"\\left(?![a-z])|\\right(?![a-z])", "", text.strip())
    text = re.sub(r"^\\\{(.*)\\\}$", r"\1", text.strip(), flags=re.DOTALL)  # a set
    text = re.sub(r"\\(?:text|mbox|mathrm)\{\s*(?:and|or)\s*\}|\b(?:and|or)\b", ",", text)
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    signed = itertools.chain(*map(_of_either_sign, parts))
    return [part.strip() for part in signed if part.strip()]


def _of_either_sign(part: str) -> list[str]:
    both = [re.sub(r"\\pm\s*", sign, part) for sign in ("+", "-")]
    return both if r"\pm" in part else [part]


def _unmatched(problem: Problem, one: str, other: str) -> tuple[list[str], list[str]]:
    """The parts of two answers that are not plainly the same as one of the other's."""
    ours, theirs = (listed(text) if problem.multiple else [text] for text in (one, other))
    for part in tuple(ours):
        same = [another for another in theirs if plainly_same(part, another, problem.tolerance)]
        if same:
            ours.remove(part)
            theirs.remove(same[0])
    return ours, theirs


def _algebra(problem: Problem, one: str, other: str) -> Program:
    """Prints 1 if two answers are equal."""
    return Program(_COMPARE, json.dumps([*_unmatched(problem, one, other), problem.tolerance]))


def _unspaced(text: str) -> str:
    """Without the spaces that part no two letters or digits."""
    return re.sub(r"\s+", " ", re.sub(r"\s*([^\w\s])\s*", r"\1", text.strip()))


def _answer(role: str, text: str, runs: Sequence[Run]) -> str | None:
    if kind_of(role) != TOOL:
        return boxed(text)
    if not runs or runs[0].end != "ok":
        return None
    lines = runs[0].stdout.strip().splitlines()
    return boxed(runs[0].stdout) or (_short(lines[-1]) if lines else None)


def _short(text: str) -> str | None:
    text = text.strip()
    return text if 0 < len(text) <= LONGEST else None


def _last(state: State, role: str) -> Said | None:
    """What a role said in its last turn."""
    found = [said for turn in state.turns[-1:] for said in turn if said.role == role]
    return found[0] if found else None


def _right(state: State) -> bool:
    """Whether the team's answer, as things stand, is right."""
    for turn in (state.said, *reversed(state.turns)):
        answers = [said for said in turn if said.answer is not None]
        by_kind = {kind: [said for said in answers if kind_of(said.role) == kind] for kind in KINDS}
        for kind in (JUDGE, REASONER, TOOL):
            if by_kind[kind]:
                return by_kind[kind][-1].right
    return False


@functools.lru_cache
def read(path: str) -> tuple[Problem, ...]:
    """Raises ValueError naming the line and the field of a bad row."""
    problems = []
    for number, row in read_rows(path, {"question": str}):
        try:
            problems.append(problem_of({"id": number} | row))
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from error
    return tuple(problems)


def problem_of(row: Mapping[str, Any]) -> Problem:
    """Of a row with a question. Raises ValueError naming the field that is bad."""
    answers = row.get("answers", [row.get("answer")])
    one = isinstance(answers, list) and len(answers) == 1 and isinstance(answers[0], (str, int, float))
    if not one:
        raise ValueError(f"answer = {str(answers)[:60]} is not one text or number")
    answer = without_marks(str(answers[0]))
    if not 0 < len(answer) <= LONGEST:
        raise ValueError(f"answer = {answer[:60]!r} is empty or longer than {LONGEST}")
    tolerance = _tolerance(row.get("tolerance"))
    return Problem(str(row.get("id", "")), row["question"], answer, bool(row.get("multiple")), tolerance)


def without_marks(answer: str) -> str:
    """An answer without the dollar signs of LaTeX, and the full stop after them."""
    return re.sub(r"(?<!\\)\$", "", re.sub(r"\$\s*\.$", "$", answer.strip())).strip()


def _tolerance(given: Any) -> float:
    """OlympiadBench writes it as a text, or as one for each part of an answer: then it is the largest."""
    try:
        found = max(map(float, str(given or 0).split(",")))
    except ValueError as error:
        raise ValueError(f"tolerance = {str(given)[:60]!r} is no number") from error
    if not 0 <= found < math.inf:
        raise ValueError(f"tolerance = {found} is not a finite number of at least 0")
    return found


def key(problem: Problem) -> str:
    return words_of(problem.question)


@functools.lru_cache(maxsize=4096)
def _sum(terms: int, largest: int, seed: int, split: str, index: int) -> Problem:
    """A sum of products, made up."""
    rng = random.Random(seed_of("math", terms, largest, seed, split, index))
    while True:
        count = rng.randint(2, terms)
        numbers = [rng.randint(2, largest) for _ in range(count)]
        signs = [rng.choice("+-*") for _ in range(count - 1)]
        text = str(numbers[0]) + "".join(f" {s} {n}" for s, n in zip(signs, numbers[1:], strict=True))
        problem = Problem(text, f"What is {text}?", str(_value(numbers, signs)))
        if in_split(problem, split):
            return problem


def _value(numbers: Sequence[int], signs: Sequence[str]) -> int:
    total, product, sign = 0, numbers[0], 1
    for symbol, number in zip(signs, numbers[1:], strict=True):
        if symbol == "*":
            product *= number
        else:
            total += sign * product
            product, sign = number, 1 if symbol == "+" else -1
    return total + sign * product
