"""Reads mathematical problems from files or makes them up, and compares two answers to one."""

import dataclasses
import functools
import itertools
import json
import math
import random
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from atgrpo_jax.common.cli import typed
from atgrpo_jax.common.types import seed_of
from atgrpo_jax.sandbox.protocol import Program
from atgrpo_jax.tasks.data import read_rows, words_of
from atgrpo_jax.tasks.splits import in_split

LONGEST = 200  # most characters of an answer
WORDS = 8  # most words of an answer that is not mathematics
LARGEST_TOLERANCE = 1e9  # largest tolerance of a problem whose answer has no plain number but 0
TOLERANCE = Fraction(1, 10**6)  # relative, used where a number is a decimal fraction

# The modules that compare answers. They run in the sandbox, where a hostile answer can do no harm.
# Each program brings their source along, for workers that have not loaded them.
_JUDGE = {
    f"atgrpo_jax.answers.{name}": Path(__file__)
    .parents[2]
    .joinpath("answers", f"{name}.py")
    .read_text("utf-8")
    for name in (
        "spelling",
        "parts",
        "names",
        "tokens",
        "cursor",
        "brackets",
        "factors",
        "grammar",
        "units",
        "quantities",
        "reading",
        "sets",
        "numbers",
        "equality",
    )
}
_READY = f"""import sys, types
for name, source in {_JUDGE!r}.items():
    if name not in sys.modules:
        sys.modules[name] = types.ModuleType(name)
        exec(compile(source, name, "exec"), sys.modules[name].__dict__)
from atgrpo_jax.answers.equality import equal, main
"""
_COMPARE = _READY + "main()"
WARM_UP = _READY + r"equal(r'\frac{1}{2}', '0.5'), equal(r'\sqrt{x}', 'x**(1/2)'), equal('x > 1', '(1, oo)')"


@dataclasses.dataclass(frozen=True)
class Problem:
    id: str
    question: str
    answer: str  # LaTeX, or a number
    # These say how answers are compared. They are not in the ``repr``, which decides the split of a
    # made-up problem.
    multiple: bool = dataclasses.field(default=False, repr=False)  # a list of answers, in any order
    tolerance: float = dataclasses.field(default=0.0, repr=False)  # of numbers, absolute


# Equality


def as_number(text: str) -> Fraction | None:
    """Returns the value of a plain number (``-3``, ``1,234.5``, ``3/4``, ``1e3``); None of any
    other text."""
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
    """Returns whether two answers to a problem are equal; None if only algebra can tell."""
    if not problem.multiple:
        return plainly_same(one, other, problem.tolerance)
    if max(len(one), len(other)) > LONGEST:
        return one == other
    left = list(itertools.chain(*_unmatched(problem, one, other)))
    if not left:
        return True
    return None if None in map(as_number, left) else False


def plainly_same(one: str, other: str, tolerance: float = 0.0) -> bool | None:
    """Returns whether two texts are the same text or the same number; None if only algebra can
    tell.

    Numbers may differ by ``tolerance`` (absolute), and by ``TOLERANCE`` (relative) if one of them
    is a decimal fraction.
    """
    if max(len(one), len(other)) > LONGEST:  # too long for an answer
        return one == other
    if _unspaced(one) == _unspaced(other):
        return True
    first = as_number(one)
    second = as_number(other)
    if first is None or second is None:
        return None
    allowed = Fraction(str(tolerance))
    whole = first.denominator == second.denominator == 1
    if not whole and re.search(r"\.|e-", one + " " + other):
        allowed = max(allowed, TOLERANCE * max(abs(first), abs(second)))
    return abs(first - second) <= allowed


def listed(text: str) -> list[str]:
    """Returns the answers in a list of several. Commas, "and" and "or" outside of brackets separate
    them; ``a \\pm b`` is two answers."""
    text = re.sub(r"\\left(?![a-z])|\\right(?![a-z])", "", text.strip())
    text = re.sub(r"^\\\{(.*)\\\}$", r"\1", text.strip(), flags=re.DOTALL)  # a set
    text = re.sub(r"\\(?:text|mbox|mathrm)\{\s*(?:and|or)\s*\}|\b(?:and|or)\b", ",", text)
    parts = [""]
    depth = 0
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
    """Returns the parts of each answer that are not plainly the same as a part of the other."""
    ours, theirs = (listed(text) if problem.multiple else [text] for text in (one, other))
    for part in tuple(ours):
        same = [another for another in theirs if plainly_same(part, another, problem.tolerance)]
        if same:
            ours.remove(part)
            theirs.remove(same[0])
    return ours, theirs


def algebra(problem: Problem, one: str, other: str) -> Program:
    """Returns a program that prints 1 if two answers are equal."""
    return Program(
        _COMPARE, json.dumps([one, other, str(Fraction(str(problem.tolerance))), problem.multiple])
    )


def _unspaced(text: str) -> str:
    """Returns a text with only those spaces, as one each, that separate two letters or digits."""
    return re.sub(r"\s+", " ", re.sub(r"\s*([^\w\s])\s*", r"\1", text.strip()))


# Files


@functools.lru_cache
def read(path: str) -> tuple[Problem, ...]:
    """Returns the problems of a file. Raises ValueError that names the line and the field of a bad
    row."""
    problems = []
    for number, row in read_rows(path, {"question": str}):
        try:
            problems.append(problem_of({"id": number} | row))
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from error
    return tuple(problems)


def problem_of(row: Mapping[str, Any]) -> Problem:
    """Returns the problem in a row that has a question. Raises ValueError that names the bad
    field."""
    answers = row.get("answers", [row.get("answer")])
    one = isinstance(answers, list) and len(answers) == 1 and type(answers[0]) in (str, int, float)
    if not one:
        raise ValueError(f"answer = {str(answers)[:60]} is not one text or number")
    answer = without_marks(str(answers[0]))
    if not 0 < len(answer) <= LONGEST:
        raise ValueError(f"answer = {answer[:60]!r} is empty or longer than {LONGEST}")
    if reason := unsayable(answer):
        raise ValueError(f"answer = {answer[:60]!r}: {reason}")
    multiple = row.get("multiple")
    if multiple not in (None, False, True):
        raise ValueError(f"multiple = {str(multiple)[:60]!r} is neither true nor false")
    tolerance = _tolerance(row.get("tolerance"), answer)
    return Problem(str(row.get("id", "")), row["question"], answer, bool(multiple), tolerance)


_NOBODY_SAYS = {"nan", "n/a", "na", "none", "null", "proof", "inf", "see solution", "unknown", "?", "-"}


def unsayable(answer: str) -> str:
    """Returns why no role could give this answer to a problem; "" if one could."""
    if "####" in answer:
        return (
            "GSM8K's own, with its reasoning: "
            f"{typed('atgrpo_jax.tools.prepare')} --source=answers takes it off"
        )
    if answer.casefold().rstrip(".") in _NOBODY_SAYS:
        return "a word for no answer"
    words = re.sub(r"\\[a-zA-Z]+", " ", re.sub(r"\\(?:text|mbox|mathrm)\s*\{[^{}]*\}", " ", answer))
    if len(re.findall(r"[A-Za-z]{2,}", words)) > WORDS:
        return f"a sentence, of more than {WORDS} words"
    return ""


def without_marks(answer: str) -> str:
    r"""Returns an answer without LaTeX's marks around mathematics, which are dollar signs, ``\(...\)``
    and ``\[...\]``, and without a full stop after the last one. ``\\[2pt]`` is no such mark."""
    answer = re.sub(r"(\$|\\[)\]])\s*\.$", r"\1", answer.strip())
    return re.sub(r"(?<!\\)(?:\$|\\[()\[\]])", "", answer).strip()


def _tolerance(given: Any, answer: str) -> float:
    """Returns the tolerance of a row. OlympiadBench writes it as a text, perhaps with one tolerance
    for each part of the answer; then the largest counts. Raises ValueError for a bad one."""
    if given is None or given == "":
        return 0.0
    if type(given) not in (str, int, float):
        raise ValueError(f"tolerance = {str(given)[:60]!r} is no number")
    try:
        found = max(map(float, str(given).split(",")))
    except ValueError as error:
        raise ValueError(f"tolerance = {str(given)[:60]!r} is no number") from error
    if not 0 <= found < math.inf:
        raise ValueError(f"tolerance = {found} is not a finite number of at least 0")
    sizes = [abs(number) for number in map(as_number, listed(answer)) if number]
    if found > max(sizes, default=LARGEST_TOLERANCE):
        raise ValueError(
            f"tolerance = {found} makes anything right: it is absolute, and more than the answer"
        )
    return found


def key(problem: Problem) -> str:
    return words_of(problem.question)


# Made up


@functools.lru_cache(maxsize=4096)
def made_up(least: int, terms: int, largest: int, signs: str, seed: int, split: str, index: int) -> Problem:
    """Returns a made-up problem: a sum of products, or what else ``signs`` allow."""
    rng = random.Random(seed_of("math", terms, largest, seed, split, index))
    while True:
        count = rng.randint(least, terms)
        numbers = [rng.randint(2, largest) for _ in range(count)]
        chosen = [rng.choice(signs) for _ in range(count - 1)]
        text = str(numbers[0]) + "".join(f" {s} {n}" for s, n in zip(chosen, numbers[1:], strict=True))
        problem = Problem(text, f"What is {text}?", str(_value(numbers, chosen)))
        if in_split(problem, split):
            return problem


def totals(problem: Problem) -> list[str]:
    """Returns the values of the beginnings of a made-up sum, from its first two numbers on."""
    words = problem.id.split()
    numbers = list(map(int, words[::2]))
    return [
        str(_value(numbers[:count], words[1 : 2 * count - 1 : 2])) for count in range(2, len(numbers) + 1)
    ]


def _value(numbers: Sequence[int], signs: Sequence[str]) -> int:
    total = 0
    product = numbers[0]
    sign = 1
    for symbol, number in zip(signs, numbers[1:], strict=True):
        if symbol == "*":
            product *= number
        else:
            total += sign * product
            product = number
            sign = 1 if symbol == "+" else -1
    return total + sign * product
