"""What flows through a step: frozen dataclasses, no behaviour beyond what they derive. No jax here."""

import dataclasses
import enum
import hashlib
import math
import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from atgrpo_jax.common.checks import check_types, require

Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": text}
Split = Literal["train", "validation", "test"]


class Outcome(enum.Enum):
    """How a candidate ended."""

    OK = "ok"  # an action was parsed and carried out
    INVALID = "invalid"  # the text holds no usable action
    TRUNCATED = "truncated"  # the token limit cut the text
    TOOL_TIMEOUT = "tool_timeout"  # model-written code ran past its limit
    TOOL_CRASH = "tool_crash"  # the tool itself failed, not the code it ran
    ENGINE_ERROR = "engine_error"  # the engine returned no sample


@dataclasses.dataclass(frozen=True)
class Reward:
    """Reward of one candidate, scored from the state its prompt showed.

    ``local`` is the sum of ``parts`` (format, progress, ...); ``team`` is about the whole team's goal.
    """

    team: float
    local: float
    parts: Mapping[str, float]

    @classmethod
    def of(cls, team: float, **parts: float) -> "Reward":
        try:
            local = sum(parts.values())
        except (TypeError, OverflowError):
            local = math.nan  # of parts that are no numbers: ``tasks/calls.py`` says which, and where
        return cls(team, local, parts)

    def mixed(self, alpha: float) -> float:
        """alpha * team + local (arXiv 2510.11062, eq. 4)."""
        return alpha * self.team + self.local


@dataclasses.dataclass(frozen=True, order=True)
class GroupKey:
    """The node of a sampling tree that a group was drawn at; stamped when sampled, never guessed later."""

    step: int  # training step, or the step an evaluation belongs to
    split: str
    instance: int  # index within the split
    episode: int  # 0 in tree sampling; which of the whole episodes in trajectory sampling
    turn: int
    role: str

    def path(self) -> str:
        return f"{self.step}/{self.split}/{self.instance}/{self.episode}/{self.turn}/{self.role}"


@dataclasses.dataclass(frozen=True, order=True)
class Address:
    """Names one sample of a run, and so its randomness, whatever else was in the batch."""

    seed: int  # of the run
    group: GroupKey
    k: int

    def key_words(self) -> tuple[int, int]:
        """Two uint32 words for a counter-based generator."""
        digest = hash_bytes(f"{self.seed}/{self.group.path()}/{self.k}")
        return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little")


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Settings of one request; see ``engines.local.sampling.Rules``. Temperature 0 is greedy."""

    temperature: float = 1.0
    max_tokens: int = 16  # the stop id included
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    min_tokens: int = 0  # before a stop id may be drawn
    banned: tuple[int, ...] = ()  # token ids that are never drawn
    stop: tuple[str, ...] = ()  # a sample ends with the token by which its text holds one of them
    pattern: str = ""  # regular expression that the whole text matches, if the token limit does not cut it

    def __post_init__(self):
        check_types(self)
        require(self, "temperature", self.temperature >= 0, "must not be negative")
        require(self, "max_tokens", self.max_tokens >= 1, "must be at least 1")
        require(self, "top_k", self.top_k >= 0, "must not be negative; 0 for all")
        require(self, "top_p", 0 < self.top_p <= 1, "must be in (0, 1]")
        require(self, "min_p", 0 <= self.min_p <= 1, "must be in [0, 1]")
        within = 0 <= self.min_tokens <= self.max_tokens
        require(self, "min_tokens", within, f"must be from 0 to max_tokens = {self.max_tokens}")
        object.__setattr__(self, "banned", tuple(self.banned))
        require(self, "banned", all(i >= 0 for i in self.banned), "must not be negative")
        object.__setattr__(self, "stop", tuple(self.stop))
        require(self, "stop", all(self.stop), "an empty string is in every text")
        if self.pattern:
            try:
                re.compile(self.pattern)
            except re.error as error:
                require(self, "pattern", False, f"not a regular expression: {error}")
            rule = "says itself which tokens come when: without min_tokens, banned and stop"
            require(self, "pattern", not (self.min_tokens or self.banned or self.stop), rule)

    @property
    def restricted(self) -> bool:
        """Whether some tokens that the model could draw may not be."""
        limits = self.top_k, self.top_p < 1, self.min_p, self.min_tokens, self.banned, self.pattern
        return any(limits)


@dataclasses.dataclass(frozen=True)
class Sample:
    """What an engine returns for one address. ``tokens`` ends with the stop id if ``finish`` is "stop"."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]  # of each token, at the sampling temperature: what the learner computes
    finish: Literal["stop", "length", "error"]
    version: int  # of the weights that drew it
    # Of each token in the distribution it was drawn from, where top-k and its like make that another one.
    drawn_logprobs: tuple[float, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Origin:
    """Everything the members of one group must agree in."""

    key: GroupKey
    prompt_ids: tuple[int, ...]
    state_digest: str
    policy: str
    version: int
    sampling: Sampling


@dataclasses.dataclass(frozen=True)
class Candidate:
    origin: Origin
    sample: Sample
    text: str
    outcome: Outcome
    reward: Reward | None  # None if excluded: an excluded candidate never becomes a zero reward


@dataclasses.dataclass(frozen=True)
class Group:
    """K candidates of one prompt. ``chosen`` indexes the executed one; None if all were excluded."""

    candidates: tuple[Candidate, ...]
    chosen: int | None

    @property
    def origin(self) -> Origin:
        return self.candidates[0].origin


@dataclasses.dataclass(frozen=True)
class Episode:
    """One team on one instance; ``groups`` in the order played. ``done`` by turn limit is not ``solved``."""

    split: str
    instance: int
    episode: int
    groups: tuple[Group, ...]
    solved: bool
    turns: int
    end: Literal["solved", "ended", "turn_limit", "engine_error"]


TILE = 64  # tokens to a side of attention's tiles; rows are at most one tile long or a multiple of it


class Trained(NamedTuple):
    """The tokens of each row that are trained, first to last, then padding of weight 0. All [A, B, T]."""

    sources: Any  # int32; index in the row of the token whose output predicts this one
    targets: Any  # int32; the token
    old_logprobs: Any  # float32; the sampler's
    advantages: Any  # float32
    weights: Any  # float32; share of the token in the loss


class Batch(NamedTuple):
    """Prefix-shared rows, stacked as micro-batches of one shape. NamedTuples, so also a pytree.

    Arrays are of NumPy on the host and of JAX inside the update. A token attends to earlier tokens of its
    own segment that belong to the prompt (branch 0) or to its own branch.
    """

    tokens: Any  # int32 [A, B, T]
    positions: Any  # int32 [A, B, T]; branches restart at the end of their prompt
    segments: Any  # int32 [A, B, T]; 1.. within a row, 0 is padding
    branches: Any  # int32 [A, B, T]; 0 prompt, 1..K candidates
    # int32 [A, B, X]: pairs of tiles in which some token sees another, sorted, then -1. Of n tiles a row,
    # query tile i and key tile j are i n + j; X = n (n + 1) / 2.
    pairs: Any
    trained: Trained


def hash_bytes(text: str) -> bytes:
    """16 stable bytes, the source of all seeds, digests and splits."""
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def seed_of(*parts: object) -> int:
    """A stable 64-bit seed from anything with a stable ``str``."""
    return int.from_bytes(hash_bytes("/".join(map(str, parts)))[:8], "little")
