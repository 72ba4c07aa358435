"""Episodes as bytes: they come back as they were, or the message is refused."""

import dataclasses
import math
import random
import struct
from collections.abc import Sequence

import numpy as np
import pytest
from fakes import CharTokenizer, Sum, candidate, group
from fuzz import fuzz
from hypothesis import given
from hypothesis import strategies as st
from shared_rollout import player

from atgrpo_jax.common.errors import RunError
from atgrpo_jax.common.types import (
    Candidate,
    Episode,
    Group,
    GroupKey,
    Origin,
    Outcome,
    Ran,
    Reward,
    Sample,
    Sampling,
)
from atgrpo_jax.credit.groups import CreditConfig, credit
from atgrpo_jax.rollout import wire
from atgrpo_jax.rollout.rollout import play_all
from atgrpo_jax.rollout.team import Team
from atgrpo_jax.run.episodes import written
from atgrpo_jax.run.metrics import episode_metrics

# What a message holds. If a field is new here, ``wire`` must learn it, and ``wire.FORM`` must change.
FIELDS = {
    Episode: "split: str, instance: int, episode: int, groups: tuple[Group, ...], solved: bool, turns: int, "
    "end: Literal['solved', 'ended', 'turn_limit', 'engine_error'], problem: str, "
    "board: str | tuple[tuple[str, ...], ...] | None",
    Group: "candidates: tuple[Candidate, ...], chosen: int | None, "
    "board: str | tuple[tuple[str, ...], ...] | None",
    Candidate: "origin: Origin, sample: Sample, text: str, outcome: Outcome, reward: Reward | None, "
    "note: str, programs: tuple[Ran, ...], metrics: Mapping[str, float]",
    Origin: "key: GroupKey, prompt_ids: tuple[int, ...], state_digest: str, policy: str, version: int, "
    "sampling: Sampling",
    GroupKey: "step: int, split: str, instance: int, episode: int, turn: int, role: str, "
    "seat: int | None, stage: int",
    Sampling: "temperature: float, max_tokens: int, top_k: int, top_p: float, min_p: float, min_tokens: int, "
    "banned: tuple[int, ...], stop: tuple[str, ...], pattern: str",
    Sample: "tokens: tuple[int, ...], logprobs: tuple[float, ...], "
    "finish: Literal['stop', 'length', 'error', 'too_long'], version: int, "
    "drawn_logprobs: tuple[float, ...] | None, receipt: str",
    Reward: "team: float, local: float, parts: Mapping[str, float], at_once: float | None",
}  # fmt: skip


@pytest.mark.parametrize("kind", FIELDS, ids=lambda kind: kind.__name__)
def test_a_message_holds_every_field(kind):
    found = [f"{field.name}: {_spelt(field.type)}" for field in dataclasses.fields(kind)]
    assert ", ".join(found) == FIELDS[kind]


def _spelt(annotation):
    plain = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    return (
        plain.replace("atgrpo_jax.common.types.", "").replace("typing.", "").replace("collections.abc.", "")
    )


CHARACTERS = ["a", "ä", "\ud83d", "\ude00", "\U0001f600", '"', "\\", "\n", "\0", "\u2028"]
NUMBERS = [0, 1, -7, 10**20, 0.0, -0.0, 1.0, 0.1, 1e29, 5e-324]
NAN = struct.unpack("<d", b"\1\0\0\0\0\0\xf8\xff")[0]  # with a sign and something in its last bits
NARROW = [0.0, -0.0, -1.5, float(np.float32(-0.1)), float(np.float32(1e-45)), 3.4028234663852886e38, math.inf]
WIDE = [*NARROW, -0.1, 1e-46, 1e300, 1 + 2**-52, math.nan, NAN]
SAMPLINGS = [
    Sampling(), Sampling(temperature=1), Sampling(temperature=-0.0), Sampling(pattern="[äö]+"),
    Sampling(0.7, 9, 5, 0.9, 0.1, 3, (1, 2**40), ("\ud83d", "\n")),
]  # fmt: skip


class Odd(random.Random):
    """Makes episodes with anything in them. (Strategies of hypothesis take a second for each.)"""

    logprobs: Sequence[float] = ()  # to choose from

    def text(self):
        return "".join(self.few(lambda: self.choice(CHARACTERS)))

    def few(self, make, most=4):
        return tuple([make() for _ in range(self.randrange(most))])

    def count(self):
        return self.choice([0, 1, 2**40])

    def id(self):
        return self.choice([0, 1, -1, 2**31 - 1, -(2**31)])

    def logprob(self):
        return self.choice(self.logprobs)

    def origin(self):
        numbers = [self.count() for _ in range(4)]
        step, instance, episode, turn = numbers
        seat = self.choice([None, 0, 7])
        key = GroupKey(step, self.text(), instance, episode, turn, self.text(), seat, self.count())
        return Origin(key, self.few(self.id), self.text(), self.text(), self.count(), self.choice(SAMPLINGS))

    def sample(self):
        drawn = self.choice([None, self.few(self.logprob)])
        finish = self.choice(["stop", "length", "error", "too_long"])
        return Sample(
            self.few(self.id), self.few(self.logprob), finish, self.randrange(-1, 2), drawn, self.text()
        )

    def reward(self):
        at_once = self.choice([None, None, *NUMBERS])
        return Reward(self.choice(NUMBERS), self.choice(NUMBERS), self.numbers(), at_once)

    def numbers(self):
        return {self.text(): self.choice(NUMBERS) for _ in range(self.randrange(3))}

    def group(self):
        """Most members share their origin, as an object or as an equal one."""
        origins = [self.origin(), self.origin()]
        origins.append(dataclasses.replace(origins[0]))

        def member():
            outcome = self.choice(list(Outcome))
            reward = self.choice([None, self.reward()])
            ran = self.few(lambda: Ran(self.text(), self.text(), self.text()))
            said = self.text(), outcome, reward, self.text(), ran
            return Candidate(self.choice(origins), self.sample(), *said, self.numbers())

        return Group(self.few(member), self.choice([None, 0, 3]), self.board())

    def board(self):
        return self.choice([None, self.text(), self.few(lambda: self.few(self.text))])

    def episode(self):
        end = self.choice(["solved", "ended", "turn_limit", "engine_error"])
        solved = self.choice([True, False])
        groups = self.few(self.group)
        turns = self.count()
        names = self.text(), self.count(), self.count()
        return Episode(*names, groups, solved, turns, end, self.text(), self.board())


def logprobs_of(many):
    for episode in many:
        for each in (c.sample for g in episode.groups for c in g.candidates):
            yield from (*each.logprobs, *(each.drawn_logprobs or ()))


@fuzz(40)
@given(st.integers(0, 2**32), st.sampled_from([NARROW, WIDE]))
def test_episodes_come_back_as_they_were(seed, logprobs):
    odd = Odd(seed)
    odd.logprobs = logprobs
    played = list(odd.few(odd.episode))
    back = wire.decode(wire.encode(played))
    assert repr(back) == repr(played)  # types, too: 1, 1.0 and -0.0 are three things; and NaN is NaN
    bits = [struct.pack("<d", number) for number in logprobs_of(played)]
    assert [struct.pack("<d", number) for number in logprobs_of(back)] == bits
    if not any(map(math.isnan, logprobs_of(played))):
        assert back == played


@fuzz(60)
@given(st.data())
def test_a_message_that_is_not_whole_is_refused(data):
    message = wire.encode([episode(group(1.0, 2.0))])
    cut = data.draw(st.integers(0, len(message) - 1))
    flipped = message[:cut] + bytes([message[cut] ^ 1 << data.draw(st.integers(0, 7))]) + message[cut + 1 :]
    longer = message + data.draw(st.binary(min_size=1, max_size=9))
    for wrong in (message[:cut], flipped, longer):
        with pytest.raises(RunError, match=r"^episodes from another host[, ][^\n]*$"):
            wire.decode(wrong)


def test_a_message_of_another_version_is_refused():
    other = wire.encode([]).replace(b"episodes 3", b"episodes 1")
    with pytest.raises(RunError, match="run the same version on all hosts"):
        wire.decode(other)


def episode(*played):
    return Episode("train", 3, 0, played, False, len(played), "turn_limit")


def size(*members):
    return len(wire.encode([episode(Group(members, 0))]))


def test_what_candidates_share_is_there_once():
    """A prompt of 1,000 tokens, and settings with a pattern of 500 letters."""
    sampling = Sampling(pattern="x" * 500)
    origins = [
        Origin(GroupKey(1, "train", 3, 0, turn, "a"), tuple(range(1000)), "d" * 32, "shared", 0, sampling)
        for turn in range(2)
    ]
    one = size(candidate(origin=origins[0]))
    more = size(*[candidate(origin=origins[0], k=k) for k in range(5)])
    assert one > 4000 + 500 and more - one < 4 * 200
    two_groups = [Group((candidate(origin=origin),), 0) for origin in origins]
    both = len(wire.encode([episode(*two_groups)]))
    assert 4000 < both - one < 4000 + 400
    first, second = wire.decode(wire.encode([episode(*two_groups)]))[0].groups
    assert first.origin.sampling is second.origin.sampling


def test_a_logprob_takes_four_bytes_if_float32_holds_all_of_them():
    def of(*logprobs):
        return size(candidate(tokens=(0,) * len(logprobs), logprobs=logprobs))

    narrow = [float(np.float32(-x)) for x in np.arange(0.1, 50, 0.05)]
    grown = of(*narrow) - of()
    assert 8 * len(narrow) <= grown < 8 * len(narrow) + 8
    assert of(*narrow, -0.1) - of(*narrow, -0.5) == 4 * (len(narrow) + 1)  # no float32 is -0.1


def test_who_reads_them_sees_no_difference():
    """What is scored, credited and written of episodes that were played; some failed, some are excluded."""
    script = {(t, r): ["1", "2...", "x", None] for t in range(2) for r in "ab"}
    made, _ = player(script, Sum(), k=4, team=Team({"a": "full", "b": "lora"}))
    played = play_all(made, 1, "train", range(3), 2)
    back = wire.decode(wire.encode(played))
    assert back == played and repr(back) == repr(played)
    found = []
    for some in (played, back):
        credited, metrics, _ = credit(some, alpha=1.0, rule=CreditConfig("instance", "std"))
        content = written(1, some, credited, CharTokenizer(), {"a": 1.0, "b": 1.0})
        found.append((metrics, episode_metrics(some), content))
    assert found[0] == found[1]
