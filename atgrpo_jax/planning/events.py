"""Simulates the rollout of a step on several hosts, event by event: who draws what, and until when.

It follows engines/local (a lane of slots, drawn a chunk at a time) and rollout/shares.py (players
that take whole instances from a common counter), and knows nothing of what is said.

Axis letters: I instances, E episodes of an instance, G draws of an episode, one after the other,
K samples of a draw.
"""

import dataclasses
import heapq
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

ENDED = 4  # a chunk is over when one in so many samples has ended; as in engines/local/lanes.py


class Asked(NamedTuple):
    """Says what the instances of a step ask for. Later draws of an episode need its earlier ones."""

    tokens_IEGK: np.ndarray  # at least 1
    draws_IE: np.ndarray  # how many of its G draws an episode asks for


@dataclasses.dataclass(frozen=True)
class Skew:
    """Says how unequal answers and episodes are."""

    mean: float  # tokens of an answer
    sigma: float = 0.8  # of the logarithm of the tokens; 0: all are equally long
    ends: float = 0.0  # the chance that an episode ends after a turn; 0: all last all turns

    def asked(
        self, instances: int, episodes: int, turns: int, draws: int, samples: int, most: int, seed: int
    ) -> Asked:
        """Returns what a step asks for, with answers of at most ``most`` tokens.

        Each of the ``turns`` has so many ``draws``, one after the other, of so many ``samples``.
        """
        rng = np.random.default_rng(seed)
        size = instances, episodes, turns * draws, samples
        tokens = np.exp(rng.normal(np.log(self.mean) - self.sigma**2 / 2, self.sigma, size))
        lasts_IE = np.full(size[:2], turns)
        if self.ends:
            lasts_IE = np.minimum(rng.geometric(self.ends, size[:2]), turns)
        return Asked(np.clip(np.rint(tokens), 1, most).astype(int), lasts_IE * draws)


@dataclasses.dataclass(frozen=True)
class Speed:
    """Holds what drawing takes on one host. All times are seconds."""

    slots: int
    chunk: int  # most tokens of a sample before the host looks which samples have ended
    step_s: float  # of a decoding step
    sample_s: float = 0.0  # more of a decoding step for each sample that is drawn in it
    prompt_s: float = 0.0  # to compute the prompt of a draw
    chunk_s: float = 0.0  # of the host, for each chunk
    live_s: float = 0.0  # of the host, for each sample in a chunk
    turn_s: float = 0.0  # of the host, between an answer and the next question
    take_s: float = 0.0  # to take an instance from the counter


class Played(NamedTuple):
    """Says how a rollout went. Lists are by host."""

    seconds: list[float]  # until the host had nothing left
    tokens: list[int]
    instances: list[int]

    @property
    def slowest_s(self) -> float:
        return max(self.seconds)

    @property
    def spread(self) -> float:
        """Returns how many times as long as the mean of the hosts the slowest one takes."""
        return self.slowest_s / max(sum(self.seconds) / len(self.seconds), 1e-12)


def rollout(asked: Asked, speed: Speed, hosts: int, at_once: int, handed_out: bool = True) -> Played:
    """Simulates a rollout.

    Args:
      at_once: instances that each host plays at the same time, at most.
      handed_out: whether hosts take instances from a common counter as they get free; else each
        has its fixed share, ``instances[index::hosts]``.
    """
    count = len(asked.tokens_IEGK)
    common = iter(range(count))
    shares = [common if handed_out else iter(range(h, count, hosts)) for h in range(hosts)]
    players = [_Host(asked, speed, share) for share in shares]
    for player in players:
        player.begin(at_once)
    waiting = [(player.draw(), number) for number, player in enumerate(players)]
    heapq.heapify(waiting)
    while waiting:
        now, number = heapq.heappop(waiting)
        player = players[number]
        player.answer()
        if player.busy:
            heapq.heappush(waiting, (now + player.draw(), number))
        else:
            player.ended_s = now
    return Played(
        [player.ended_s for player in players],
        [player.tokens for player in players],
        [player.instances for player in players],
    )


class _Host:
    """Keeps the lane of a host, and the episodes that are played on it."""

    def __init__(self, asked: Asked, speed: Speed, share: Iterator[int]):
        self.ended_s = 0.0
        self.tokens = 0
        self.instances = 0
        self._asked = asked
        self._speed = speed
        self._share = share
        self._step = 0  # decoding steps so far
        self._live: list[tuple[int, int]] = []  # a heap: the step at which a sample ends, and its draw
        self._queue: deque[tuple[int, int]] = deque()  # draw and tokens of samples without a slot
        self._draws: dict[int, tuple[int, int, int]] = {}  # by number: instance, episode, draw of it
        self._missing: dict[int, int] = {}  # by number of a draw: samples that have not ended
        self._playing: dict[int, int] = {}  # by instance: episodes that have not ended
        self._number = 0
        self._own_s = 0.0  # of the host, before the next chunk
        self._prompts = 0

    @property
    def busy(self) -> bool:
        return bool(self._draws)

    def begin(self, at_once: int) -> None:
        for _ in range(at_once):
            self._take()

    def _take(self) -> None:
        """Begins the next instance, if there is one."""
        instance = next(self._share, None)
        if instance is None:
            return
        self._own_s += self._speed.take_s
        self.instances += 1
        episodes = len(self._asked.draws_IE[instance])
        self._playing[instance] = episodes
        for episode in range(episodes):
            self._ask(instance, episode, 0)

    def _ask(self, instance: int, episode: int, draw: int) -> None:
        lengths_K = self._asked.tokens_IEGK[instance, episode, draw]
        self._draws[self._number] = instance, episode, draw
        self._missing[self._number] = len(lengths_K)
        self._queue.extend((self._number, int(length)) for length in lengths_K)
        self._number += 1
        self._prompts += 1
        self._own_s += self._speed.turn_s

    def draw(self) -> float:
        """Fills the free slots and draws a chunk. Returns the seconds that it takes."""
        for _ in range(min(self._speed.slots - len(self._live), len(self._queue))):
            number, length = self._queue.popleft()
            heapq.heappush(self._live, (self._step + length, number))
            self.tokens += length
        live = len(self._live)
        if not live:
            return 0.0
        steps = self._chunk(max(live // ENDED, 1))
        self._step += steps
        speed = self._speed
        drawing_s = self._prompts * speed.prompt_s + steps * (speed.step_s + live * speed.sample_s)
        own_s = self._own_s
        self._own_s = 0.0
        self._prompts = 0
        # Only if slots are empty, the lane waits for those who may ask again.
        full = live == speed.slots
        chunk_s = speed.chunk_s + live * speed.live_s
        return chunk_s + (max(drawing_s, own_s) if full else drawing_s + own_s)

    def _chunk(self, ended: int) -> int:
        """Returns how many steps it takes until so many samples have ended, or the chunk is full."""
        last = self._step + self._speed.chunk
        soon: list[tuple[int, int]] = []
        while len(soon) < ended and self._live[0][0] <= last:
            soon.append(heapq.heappop(self._live))
        end = soon[-1][0] if len(soon) == ended else last
        for sample in soon:
            heapq.heappush(self._live, sample)
        return end - self._step

    def answer(self) -> None:
        """Ends the samples that the last chunk ended. Whoever waited for them asks again."""
        while self._live and self._live[0][0] <= self._step:
            _, number = heapq.heappop(self._live)
            self._missing[number] -= 1
            if not self._missing[number]:
                del self._missing[number]
                self._go_on(*self._draws.pop(number))

    def _go_on(self, instance: int, episode: int, draw: int) -> None:
        """Plays on after a draw was answered."""
        if draw + 1 < self._asked.draws_IE[instance, episode]:
            self._ask(instance, episode, draw + 1)
            return
        self._playing[instance] -= 1
        if not self._playing[instance]:
            del self._playing[instance]
            self._take()
