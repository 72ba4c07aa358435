"""Turns the answers of downloaded problem sets into answers that a model can give."""

import importlib.util
import json
import re
from typing import Any

from atgrpo_jax.tasks.math.boxes import boxed
from atgrpo_jax.tasks.math.math_problems import LONGEST, Problem, unsayable, without_marks
from atgrpo_jax.tools.downloads import Unusable

_GSM8K = "####"  # is between the solution and the answer


def truth_of(found: Any, solution: Any = None) -> str:
    """Returns the answer of a row, or else the answer that its solution boxes, as in MATH.

    Raises Unusable for several answers, or for one that the task does not read or nobody can give.
    """
    if found in (None, "", []) and isinstance(solution, str):
        found = boxed(solution)
    found = _one(_listed(found))
    if found is None:
        raise Unusable("no answer")
    if isinstance(found, bool) or not isinstance(found, (str, int, float)):
        raise TypeError(f"answer = {str(found)[:60]!r} is neither a text nor a number")
    answer = without_marks(str(found).rpartition(_GSM8K)[2])
    if "\\boxed" in answer:
        answer = boxed(answer) or answer
    if not answer:
        raise Unusable("no answer")
    if len(answer) > LONGEST:
        raise Unusable(f"the answer is longer than {LONGEST} characters")
    if reason := unsayable(answer):
        raise Unusable(reason)
    return answer


def check_truth(problem: Problem) -> None:
    """Raises Unusable if the answer of a problem cannot be read, or is not equal to itself."""
    if importlib.util.find_spec("sympy") is None:
        raise ImportError('reading answers needs sympy: pip install "atgrpo_jax[math]"')
    from atgrpo_jax.answers.equality import equal
    from atgrpo_jax.answers.parts import Word
    from atgrpo_jax.answers.reading import read
    from atgrpo_jax.answers.spelling import GREEK

    value = read(problem.answer, problem.multiple).value
    prose = re.sub(r"\\[a-zA-Z]+\s*\{[^{}]*\}|\\[a-zA-Z]+", " ", problem.answer)
    symbols = {str(symbol) for symbol in getattr(value, "free_symbols", ())} - set(GREEK)
    worded = isinstance(value, Word) or any(name.isalpha() and len(name) > 3 for name in symbols)
    if worded and re.search(r"\d", prose) and re.search(r"[A-Za-z]{2}", prose):
        raise Unusable("an answer that cannot be read: numbers among words")
    if not equal(problem.answer, problem.answer, "0", problem.multiple):
        raise Unusable("an answer that is not equal to itself")


def _listed(found: Any) -> Any:
    """Reads a list of texts that is written as JSON, as in Skywork-OR1."""
    if not (isinstance(found, str) and re.match(r'\s*\[\s*"', found)):
        return found
    try:
        return json.loads(found)
    except (ValueError, RecursionError):
        return found


def _one(found: Any) -> Any:
    if not isinstance(found, list):
        return found
    if len(found) > 1:
        raise Unusable("several answers")
    return found[0] if found else None
