"""Leads one episode through its task's workflow: who speaks next, and when it is over."""

from collections.abc import Sequence
from typing import Any, Literal

from atgrpo_jax.common.errors import RunError
from atgrpo_jax.tasks.protocol import Play, Selective, Transition


class Course:
    """Keeps the place of one episode in its workflow.

        course = Course(task, state)
        while speakers := course.next():
            for speaker in speakers:  # their prompts show the state that ``next`` left
                course.take(speaker's transition from course.state)

    ``turn`` and ``stage`` (of the turn) are counted from 0. ``end`` is None until the episode is over.
    ``turns`` counts those in which somebody spoke. There are at most the workflow's, and at most
    ``most_turns`` if these are given.
    """

    def __init__(self, task: Play, state: Any, most_turns: int | None = None):
        self.state = state
        self.turn = 0
        self.stage = -1
        self.turns = 0
        self.end: Literal["solved", "ended", "turn_limit"] | None = None
        self._task = task
        turns = task.workflow.turns
        self._most_turns = turns if most_turns is None else min(most_turns, turns)
        self.waiting: Sequence[str] = ()  # speakers of this stage who have not acted, in order
        self.acted = False  # whether anybody has

    def next(self) -> Sequence[str]:
        """Returns who speaks in the next stage, all from ``state``; nobody if the episode is over.

        A stage in which nobody speaks is left out. After a turn of such stages the episode is over,
        for the next turn would be no other one. Raises RunError if ``speaks`` returns no bool.
        """
        assert not self.waiting, "the stage is not over"
        stages = self._task.workflow.stages
        while self.end is None:
            self.stage += 1
            if self.stage == len(stages):
                if self.turns == self.turn:
                    self.end = "ended"
                elif self.turns == self._most_turns:
                    self.end = "turn_limit"
                else:
                    self.turn += 1
                    self.stage = -1
                continue
            speaking = [name for name in stages[self.stage] if speaks(self._task, self.state, name)]
            if speaking:
                self.turns = self.turn + 1
                self.waiting = tuple(speaking)
                return self.waiting
        return ()

    def take(self, transition: Transition) -> None:
        """Carries out the action of the next speaker of the stage, in order.

        Only the stage's last action may end the episode.
        """
        self.state = transition.state
        self.acted = True
        self.waiting = self.waiting[1:]
        if transition.done and not self.waiting:
            self.end = "solved" if transition.solved else "ended"


def speaks(task: Play, state: Any, name: str) -> bool:
    """Returns whether ``name`` speaks in ``state``. Raises RunError if the task says neither yes nor no."""
    if not isinstance(task, Selective):
        return True
    found = task.speaks(state, name)
    if not isinstance(found, bool):
        raise RunError(f"{type(task).__name__}.speaks gave {found!r} for {name}; expected True or False")
    return found
