"""Holds what roles have said about a mathematical problem, and reads the team's answer from it."""

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

from atgrpo_jax.tasks import prompts
from atgrpo_jax.tasks.math.math_problems import Problem
from atgrpo_jax.tasks.parts import Parts

TOOL, REASONER, JUDGE, CHECKER = KINDS = ("tool", "reasoner", "judge", "checker")
SHOWN = 1000  # characters of a text, or of a program's output, that others are shown
PROGRAM_SHOWN = 2000  # characters of a program that others are shown


@dataclasses.dataclass(frozen=True)
class Said:
    """The words of a role in a turn. ``answer`` is None if it gave none; a checker's is a verdict."""

    role: str
    text: str = ""
    code: str = ""
    output: str = ""
    answer: str | None = None
    right: bool = False
    like: str | None = None  # the first answer of the turn that is equal to this one
    parts: Parts = ()  # parts of its local reward, by name


@dataclasses.dataclass(frozen=True)
class State:
    problem: Problem
    turns: tuple[tuple[Said, ...], ...] = ()  # the turns that are complete
    said: tuple[Said, ...] = ()  # what was said in this turn so far


def kind_of(role: str) -> str:
    return role.rstrip("0123456789")


def shown(said: Said, to: str) -> dict[str, Any]:
    """Returns what a prompt of the role ``to`` may show of what a role said."""
    return {
        "role": said.role,
        "kind": kind_of(said.role),
        "own": said.role == to,
        "text": prompts.shortened(said.text, SHOWN),
        "code": prompts.shortened(said.code, PROGRAM_SHOWN),
        "output": prompts.shortened(said.output, SHOWN),
        "answer": said.answer,
    }


def last_said(state: State, role: str) -> Said | None:
    """Returns what a role said in the turn before this one; None if nothing."""
    found = [said for turn in state.turns[-1:] for said in turn if said.role == role]
    return found[0] if found else None


def agree(said: Sequence[Said]) -> bool:
    """Returns whether two or more said something, and all gave equal answers."""
    likes = {one.like for one in said}
    return len(said) > 1 and len(likes) == 1 and None not in likes


def team_answer(state: State, majority: bool) -> Said | None:
    """Returns who gave the team's answer; None if nobody has given an answer.

    It is taken from the last turn in which there is one, from judges if they gave one, else from
    reasoners, else from tools. Of several, the last one counts; with ``majority`` it is the last
    one of those whose answer was given most often.
    """
    for turn in (state.said, *reversed(state.turns)):
        for kind in (JUDGE, REASONER, TOOL):
            answers = [said for said in turn if kind_of(said.role) == kind and said.answer is not None]
            votes = collections.Counter(said.like for said in answers)
            most = max(votes.values(), default=0)
            counted = [said for said in answers if not majority or votes[said.like] == most]
            if counted:
                return counted[-1]
    return None
