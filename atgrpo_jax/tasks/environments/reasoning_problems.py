"""Makes problems of reasoning-gym's generators, and the programs that score answers to them.

A generator is named by its name and config. It makes a problem from a seed, and always the same one.
"""

import ast
import dataclasses
import importlib
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from atgrpo_jax.common.errors import one_line
from atgrpo_jax.common.literals import literal
from atgrpo_jax.sandbox.protocol import Program, ProgramResult

PACKAGE = "reasoning_gym"
# It imports matplotlib, which would look for a folder of its own to delete when a program ends.
WARM_UP = f"import atexit\nimport {PACKAGE}\natexit._clear()"


@dataclasses.dataclass(frozen=True)
class Problem:
    seed: int
    question: str
    answer: str | None  # the generator's own answer, if it gives one


@dataclasses.dataclass(frozen=True)
class Generator:
    """``config`` is text that Python reads as the generator's settings, so that this is hashable."""

    name: str
    config: str

    @classmethod
    def of(cls, name: str, config: Mapping[str, Any]) -> "Generator":
        """Raises ValueError for a name that reasoning-gym does not have, or a config that it refuses."""
        if find_spec(PACKAGE) is None:
            raise ValueError('needs reasoning-gym: pip install "atgrpo_jax[reasoning-gym]"')
        text = literal(dict(config))
        if text is None:
            raise ValueError("its values must be numbers, texts, None, and lists or tuples of them")
        made = cls(name, text)
        try:
            made.problem(0)
        except Exception as error:
            raise ValueError(
                f"reasoning-gym's {name!r} makes no problem: {type(error).__name__}: {one_line(error)}"
            ) from error
        return made

    def problem(self, seed: int) -> Problem:
        create = importlib.import_module(PACKAGE).create_dataset
        entry = create(self.name, size=1, seed=seed, **ast.literal_eval(self.config))[0]
        answer = entry["answer"]
        return Problem(seed, entry["question"], None if answer is None else str(answer))


# The scorer is other people's code, and some scorers evaluate the text that they are given. It runs
# in the sandbox. There, what is compiled from a text while an answer is scored may compute numbers
# and literals, and nothing else, so that no text changes its own score.
ANOTHER = -1.0  # is printed if the sandbox makes another problem from the seed than the run's process
_SCORER = """
import ast, builtins, sys
import reasoning_gym

data = reasoning_gym.create_dataset({name!r}, size=1, seed={seed}, **{config})
entry = data[0]
same = entry["question"] == {question}
CALLED = {{"abs", "min", "max", "round", "int", "float", "sum", "len", "pow", "list", "tuple", "set"}}
REFUSED = (ast.Attribute, ast.Lambda, ast.NamedExpr, ast.JoinedStr, ast.comprehension, ast.stmt, ast.Starred)
reading = False

def plain(node):
    if isinstance(node, ast.Call) and not isinstance(node.func, ast.Name):
        return False
    if isinstance(node, ast.Name):
        return node.id in CALLED or not (node.id.startswith("_") or hasattr(builtins, node.id))
    return not isinstance(node, REFUSED) or isinstance(node, ast.Expr)

def refuse(event, args):
    global reading
    if event != "compile" or reading or args[0] is None or not str(args[1]).startswith("<"):
        return
    text = args[0].decode(errors="replace") if isinstance(args[0], bytes) else args[0]
    if text == "from sympy import *":
        return  # sympy's own, when it reads an expression
    reading = True
    try:
        tree = ast.parse(text)
    except Exception:
        return  # it will not be compiled, either
    finally:
        reading = False
    if not all(map(plain, ast.walk(tree))):
        raise ValueError("an answer may not be a program")

def score(answer):
    return max(0.0, float(data.score_answer(answer, entry))) if same else {another}

sys.addaudithook(refuse)
"""


def scorer(generator: Generator, problem: Problem, answer: str) -> Program:
    """Returns a program that prints the score of an answer."""
    source = _SCORER.format(
        name=generator.name,
        seed=problem.seed,
        config=generator.config,
        question=ascii(problem.question),
        another=ANOTHER,
    )
    return Program(source, harness=f"print(score({answer!a}))", names=("score",))


def another(run: ProgramResult) -> bool:
    """Returns whether a scorer had another problem before it, so that nothing is known of the answer."""
    return run.end == "ok" and run.stdout.strip() == str(ANOTHER)


def score_of(run: ProgramResult) -> float:
    """Returns the score that a scorer printed, from 0 to 1; 0 if it printed none."""
    try:
        score = float(run.stdout) if run.end == "ok" and len(run.stdout) < 40 else 0.0
    except ValueError:
        return 0.0
    return min(score, 1.0) if score > 0 else 0.0  # also of what is no number
