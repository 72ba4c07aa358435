"""Defines the values that flow through a step, as frozen dataclasses.

They have no behaviour beyond what they derive from their fields. This module does not import jax.
"""

import dataclasses
import enum
import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

from atgrpo_jax.common.checks import check_types, require

Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": text}
# A picture of a state, for people: a text, or rows of cells, each "kind" or "kind label".
Board: TypeAlias = str | tuple[tuple[str, ...], ...]


class Outcome(enum.Enum):
    """The way in which a candidate ended. Each value is explained beside it."""

    OK = "ok"  # an action was parsed and carried out
    INVALID = "invalid"  # the text holds no usable action
    TRUNCATED = "truncated"  # the token limit cut the text
    TOOL_TIMEOUT = "tool_timeout"  # model-written code ran past its limit
    TOOL_CRASH = "tool_crash"  # the tool itself failed, not the code it ran
    ENGINE_ERROR = "engine_error"  # the engine returned no sample


# Outcomes that are no doing of the policy.
FAILURES = (Outcome.TOOL_CRASH.value, Outcome.ENGINE_ERROR.value)


@dataclasses.dataclass(frozen=True)
class Reward:
    """The reward of one candidate. It is scored from the state that its prompt showed.

    ``local`` is the sum of ``parts`` (format, progress, ...). ``team`` is about the goal of the
    whole team.
    """

    team: float
    local: float
    parts: Mapping[str, float]
    # What ``team`` was before counterfactual credit added what came later; None if nothing was added.
    at_once: float | None = dataclasses.field(default=None, compare=False, repr=False)

    @classmethod
    def of(cls, team: float, **parts: float) -> "Reward":
        try:
            local = sum(parts.values())
        except (TypeError, OverflowError):
            local = math.nan  # some parts are not numbers: ``tasks/calls.py`` reports them
        return cls(team, local, parts)

    def mixed(self, alpha: float) -> float:
        """Returns alpha * team + local (arXiv 2510.11062, eq. 4)."""
        return alpha * self.team + self.local


@dataclasses.dataclass(frozen=True, order=True)
class GroupKey:
    """The node of a sampling tree at which a group was drawn.

    It is set when the group is sampled and never reconstructed later.
    """

    step: int  # training step; for an evaluation, the step that it belongs to
    split: str
    instance: int  # index within the split
    episode: int  # always 0 in tree sampling; the number of the episode in trajectory sampling
    turn: int
    role: str
    seat: int | None = None  # of a role that has several; see ``tasks.workflow.Workflow``
    stage: int = 0  # of the turn

    @property
    def speaker(self) -> str:
        """Returns the name under which the task knows who speaks: the role's, or its seat's."""
        return self.role if self.seat is None else f"{self.role}{self.seat}"

    def path(self) -> str:
        place = f"{self.step}/{self.split}/{self.instance}/{self.episode}"
        return f"{place}/{self.turn}/{self.stage}/{self.speaker}"


@dataclasses.dataclass(frozen=True, order=True)
class Address:
    """The name of one sample of a run. It fixes the sample's randomness, whatever else is drawn."""

    seed: int  # seed of the run
    group: GroupKey
    k: int  # index of the sample within its group

    def key_words(self) -> tuple[int, int]:
        """Returns two uint32 words that seed a counter-based generator."""
        digest = hash_bytes(f"{self.seed}/{self.group.path()}/{self.k}")
        return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little")


@dataclasses.dataclass(frozen=True)
class Sampling:
    """The sampling settings of one request; ``engines.local.sampling.Rules`` explains them."""

    temperature: float = 1.0  # 0 is greedy: the most likely token is taken
    max_tokens: int = 16  # includes the stop id
    top_k: int = 0  # 0 for all tokens
    top_p: float = 1.0  # the likeliest tokens whose probabilities sum to this; 1 for all
    min_p: float = 0.0  # tokens at least this likely, as a share of the likeliest; 0 for all
    min_tokens: int = 0  # tokens that are drawn before a stop id may be drawn
    banned: tuple[int, ...] = ()  # token ids that are never drawn
    stop: tuple[str, ...] = ()  # a sample ends as soon as its text contains one of these strings
    # A regular expression. The whole text matches it, unless the token limit cuts the text.
    pattern: str = ""

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
        """Returns whether the settings forbid some tokens that the model could draw."""
        limits = self.top_k, self.top_p < 1, self.min_p, self.min_tokens, self.banned, self.pattern
        return any(limits)


@dataclasses.dataclass(frozen=True)
class Sample:
    """The tokens that an engine returns for one address.

    ``tokens`` ends with the stop id if ``finish`` is "stop".
    """

    tokens: tuple[int, ...]
    # One for each token, at the sampling temperature, before top-k etc.: what the learner computes.
    logprobs: tuple[float, ...]
    # "error": the engine failed. "too_long": the prompt left no room for an answer. Both have no tokens.
    finish: Literal["stop", "length", "error", "too_long"]
    version: int  # version of the weights that drew it
    # One for each token, in the distribution that it was drawn from. None where that distribution
    # is the one of ``logprobs``; top-k and similar settings make it another one.
    drawn_logprobs: tuple[float, ...] | None = None
    # What the engine was asked to draw here, as it says itself; see ``receipts``.
    receipt: str = ""

    @property
    def drawn(self) -> bool:
        """Returns whether there is a sample at all."""
        return self.finish not in ("error", "too_long")


@dataclasses.dataclass(frozen=True)
class Origin:
    """Everything that must be the same for all candidates of a group."""

    key: GroupKey
    prompt_ids: tuple[int, ...]
    state_digest: str
    policy: str  # "" of a partner, which has none
    version: int  # of the policy's weights; -1 of a partner
    sampling: Sampling


class Ran(NamedTuple):
    """What a program left that a candidate wrote or asked for, cut to its two ends."""

    end: str  # ``sandbox.protocol.End``
    stdout: str
    stderr: str


@dataclasses.dataclass(frozen=True)
class Candidate:
    origin: Origin
    sample: Sample
    text: str
    outcome: Outcome
    reward: Reward | None  # None for an excluded candidate, which must never count as reward 0
    note: str = ""  # the task's, for people
    programs: tuple[Ran, ...] = ()
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)  # numbers of the task's own


@dataclasses.dataclass(frozen=True)
class Group:
    """The K candidates of one prompt."""

    candidates: tuple[Candidate, ...]
    # Index of the executed candidate; None if nobody acted, because all were excluded, or all of somebody
    # who spoke at the same time.
    chosen: int | None
    board: Board | None = None  # the state that the prompt showed, if the task draws it

    @property
    def origin(self) -> Origin:
        return self.candidates[0].origin

    @property
    def by_partner(self) -> bool:
        """Returns whether a partner spoke: the group has one candidate, and is never trained."""
        return not self.origin.policy


@dataclasses.dataclass(frozen=True)
class Episode:
    """One play of an instance by a team."""

    split: str
    instance: int
    episode: int
    groups: tuple[Group, ...]  # in the order in which they were played
    solved: bool  # an episode that ends by the turn limit is not solved
    turns: int
    end: Literal["solved", "ended", "turn_limit", "engine_error"]
    problem: str = ""  # a name of the instance: its ``id`` if it has one, else its digest
    board: Board | None = None  # the state at the end, if the task draws it


# Tokens along each side of an attention tile. A row is at most one tile long or a multiple of it.
TILE = 64


class Trained(NamedTuple):
    """The tokens that are trained in each row, in order, then padding of weight 0.

    All arrays are [A, B, T].
    """

    sources: Any  # int32; index in the row of the token whose output predicts the target
    targets: Any  # int32; id of the token that is trained
    old_logprobs: Any  # float32; the sampler's log-probability of the target
    advantages: Any  # float32
    weights: Any  # float32; the token's share in the loss
    temperatures: Any  # float32; the one at which the token was sampled
    objectives: Any  # int32; number of the objective that is the token's, of those of the update


class Batch(NamedTuple):
    """A minibatch: rows in which each prompt is there once, stacked as micro-batches of one shape.

    It is a NamedTuple, and so a pytree. Its arrays belong to NumPy on the host and to JAX inside
    the update. A token attends to earlier tokens of its own segment that belong to the prompt
    (branch 0) or to its own branch.
    """

    tokens: Any  # int32 [A, B, T]
    positions: Any  # int32 [A, B, T]; each branch goes on from the end of its prompt
    segments: Any  # int32 [A, B, T]; 1, 2, ... within a row; 0 is padding
    branches: Any  # int32 [A, B, T]; 0 is the prompt, 1..K are the candidates
    # int32 [A, B, X]: the pairs of tiles in which some token attends to another, sorted, then -1.
    # In a row of n tiles, query tile i and key tile j have the number i n + j; X = n (n + 1) / 2.
    pairs: Any
    trained: Trained


def of_role(value: Any, role: str) -> Any:
    """Returns a role's value of what is either one value for all roles or a mapping from each."""
    return value[role] if isinstance(value, Mapping) else value


def receipts(
    policy: str, prompt_ids: Sequence[int], sampling: Sampling, addresses: Sequence[Address]
) -> list[str]:
    """Returns a digest for each address, of all that decides what is drawn there but the weights.

    An engine computes it from what it draws with, and the audit from what the rollout recorded.
    """
    asked = hash_bytes(f"{policy}/{tuple(prompt_ids)}/{sampling}").hex()
    return [hash_bytes(f"{asked}/{a.seed}/{a.group.path()}/{a.k}").hex() for a in addresses]


def hash_bytes(text: str) -> bytes:
    """Returns 16 bytes that depend only on ``text``. Seeds, digests and splits come from them."""
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def seed_of(*parts: object) -> int:
    """Returns a 64-bit seed that depends only on the ``str`` of each part."""
    return int.from_bytes(hash_bytes("/".join(map(str, parts)))[:8], "little")
