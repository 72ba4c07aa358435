"""Names an episode, and the places at which it could have gone on otherwise."""

from collections.abc import Sequence
from typing import NamedTuple

from atgrpo_jax.common.types import Origin, Sample
from atgrpo_jax.tasks.course import Course
from atgrpo_jax.tasks.protocol import Transition

Drawn = tuple[Origin, Sample, str]  # the last one is the sample's text


class EpisodeKey(NamedTuple):
    """The name of an episode."""

    step: int
    split: str
    instance: int
    episode: int

    def __str__(self) -> str:
        return f"step {self.step}, {self.split} instance {self.instance}, episode {self.episode}"


class Crossing(NamedTuple):
    """A place at which an episode could have gone on from another candidate of a group."""

    course: Course  # as it was before one of the candidates acted
    transitions: Sequence[Transition | None]  # of each candidate
    drawn: Sequence[Sequence[Drawn]]  # by those who speak at the same time, and act after it
