"""Turns episodes into bytes and back, exactly: for other hosts, and for a checkpoint.

A message is a line that names its form, a digest of the rest, and the rest: sizes, tokens, logprobs,
JSON. The tokens of prompts and samples are one array of int32, in the order in which the JSON needs
them. The logprobs are float32 if that holds every one of them exactly, else float64. The JSON holds
everything else, and says how many tokens and logprobs belong to what. What candidates share is in
it once: an origin once for its group, sampling settings and the names of reward parts and of metrics
once for the message.
"""

import array
import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from atgrpo_jax.common.errors import RunError
from atgrpo_jax.common.types import (
    Board,
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

# To be counted up whenever the bytes of a message change (tests/test_wire.py knows the fields).
FORM = b"atgrpo_jax episodes 3\n"
_DIGEST = 16  # bytes
_SIZES = struct.Struct("<QQc")  # tokens, logprobs, type code of the logprobs ("f" or "d")


def encode(episodes: Sequence[Episode]) -> bytes:
    """Returns a message that ``decode`` turns into equal episodes, with values of the same types."""
    writer = _Writer()
    rows = [writer.episode(episode) for episode in episodes]
    tables = [list(writer.names), [json.loads(settings) for settings in writer.samplings]]
    text = _to_json([tables, rows]).encode("utf-8", "surrogatepass")
    logprobs = _narrowed(writer.logprobs)
    sizes = _SIZES.pack(len(writer.tokens), len(logprobs), logprobs.typecode.encode())
    rest = b"".join((sizes, writer.tokens, logprobs, text))
    return b"".join((FORM, _digest(rest), rest))


def decode(data: bytes) -> list[Episode]:
    """Returns the episodes of a message. Raises RunError if it is not whole, or of another form."""
    if not data.startswith(FORM):
        raise RunError(
            "episodes from another host, or in a checkpoint, have another form than here; run the same "
            "version on all hosts, and go on with the version that began the run"
        )
    message = memoryview(data)[len(FORM) :]
    rest = message[_DIGEST:]
    if message[:_DIGEST] != _digest(rest):
        raise RunError("episodes from another host arrived cut short or changed; start all hosts again")
    token_count, logprob_count, code = _SIZES.unpack_from(rest)
    tokens = array.array("i")
    logprobs = array.array(code.decode())
    logprobs_at = _SIZES.size + token_count * tokens.itemsize
    text_at = logprobs_at + logprob_count * logprobs.itemsize
    tokens.frombytes(rest[_SIZES.size : logprobs_at])
    logprobs.frombytes(rest[logprobs_at:text_at])
    tables, rows = json.loads(str(rest[text_at:], "utf-8", "surrogatepass"))
    reader = _Reader(tokens, logprobs, *tables)
    return [reader.episode(*row) for row in rows]


class _Writer:
    """Makes a row of each value, and collects what is not in the rows."""

    def __init__(self):
        self.tokens = array.array("i")
        self.logprobs = array.array("d")
        # From the names of a reward's parts, or of a task's metrics, to their number.
        self.names: dict[tuple[str, ...], int] = {}
        self.samplings: dict[str, int] = {}  # from settings as JSON to their number

    def episode(self, episode: Episode) -> list[Any]:
        groups = [self._group(group) for group in episode.groups]
        number = episode.episode
        return [
            episode.split,
            episode.instance,
            number,
            groups,
            episode.solved,
            episode.turns,
            episode.end,
            episode.problem,
            episode.board,
        ]

    def _group(self, group: Group) -> list[Any]:
        origins: list[Origin] = []
        rows = []
        candidates = []
        for candidate in group.candidates:
            if candidate.origin not in origins:
                origins.append(candidate.origin)
                rows.append(self._origin(candidate.origin))
            candidates.append(self._candidate(candidate, origins.index(candidate.origin)))
        return [rows, candidates, group.chosen, group.board]

    def _origin(self, origin: Origin) -> list[Any]:
        key = list(vars(origin.key).values())
        settings = _to_json(list(vars(origin.sampling).values()))
        sampling = self.samplings.setdefault(settings, len(self.samplings))
        prompt = _append(self.tokens, origin.prompt_ids)
        return [key, prompt, origin.state_digest, origin.policy, origin.version, sampling]

    def _candidate(self, candidate: Candidate, origin: int) -> list[Any]:
        sample = self._sample(candidate.sample)
        reward = None if candidate.reward is None else self._reward(candidate.reward)
        programs = [list(ran) for ran in candidate.programs]
        said = candidate.text, candidate.outcome.value, reward, candidate.note, programs
        return [origin, sample, *said, self._named(candidate.metrics) if candidate.metrics else None]

    def _sample(self, sample: Sample) -> list[Any]:
        tokens = _append(self.tokens, sample.tokens)
        logprobs = _append(self.logprobs, sample.logprobs)
        drawn = None
        if sample.drawn_logprobs is not None:
            drawn = _append(self.logprobs, sample.drawn_logprobs)
        return [tokens, logprobs, sample.finish, sample.version, drawn, sample.receipt]

    def _reward(self, reward: Reward) -> list[Any]:
        later = [] if reward.at_once is None else [reward.at_once]  # so rare that it takes no place
        return [reward.team, reward.local, *self._named(reward.parts), *later]

    def _named(self, values: Mapping[str, float]) -> list[Any]:
        return [self.names.setdefault(tuple(values), len(self.names)), list(values.values())]


class _Reader:
    """Makes the values of rows again, in the order in which they were written."""

    def __init__(
        self,
        tokens: array.array,
        logprobs: array.array,
        names: Sequence[Sequence[str]],
        samplings: Sequence[Sequence[Any]],
    ):
        self._tokens = _Slices(tokens)
        self._logprobs = _Slices(logprobs)
        self._names = names
        self._samplings = [Sampling(*settings) for settings in samplings]

    def episode(self, split, instance, number, groups, solved, turns, end, problem, board) -> Episode:
        played = tuple([self._group(*row) for row in groups])
        return Episode(split, instance, number, played, solved, turns, end, problem, as_board(board))

    def _group(self, origins, candidates, chosen, board) -> Group:
        made: list[Origin] = []
        members = []
        for number, *candidate in candidates:
            if number == len(made):  # its first candidate follows an origin
                made.append(self._origin(*origins[number]))
            members.append(self._candidate(made[number], *candidate))
        return Group(tuple(members), chosen, as_board(board))

    def _origin(self, key, prompt, digest, policy, version, sampling) -> Origin:
        prompt_ids = self._tokens.next(prompt)
        return Origin(GroupKey(*key), prompt_ids, digest, policy, version, self._samplings[sampling])

    def _candidate(self, origin, sample, text, outcome, reward, note, programs, metrics) -> Candidate:
        scored = None if reward is None else self._reward(*reward)
        ran = tuple([Ran(*one) for one in programs])
        own = {} if metrics is None else self._named(*metrics)
        return Candidate(origin, self._sample(*sample), text, Outcome(outcome), scored, note, ran, own)

    def _sample(self, tokens, logprobs, finish, version, drawn, receipt) -> Sample:
        ids = self._tokens.next(tokens)
        values = self._logprobs.next(logprobs)
        drawn_logprobs = None if drawn is None else self._logprobs.next(drawn)
        return Sample(ids, values, finish, version, drawn_logprobs, receipt)

    def _reward(self, team, local, names, values, at_once=None) -> Reward:
        return Reward(team, local, self._named(names, values), at_once)

    def _named(self, names, values) -> dict[str, float]:
        return dict(zip(self._names[names], values, strict=True))


class _Slices:
    """Gives an array away in pieces, from the front."""

    def __init__(self, values: array.array):
        self._values = values
        self._at = 0

    def next(self, count: int) -> tuple[Any, ...]:
        begin = self._at
        self._at += count
        return tuple(self._values[begin : self._at])


def as_board(value: Any) -> Board | None:
    """Returns a board of JSON as the value that it was."""
    return tuple(map(tuple, value)) if isinstance(value, list) else value


def _append(values: array.array, more: Sequence[Any]) -> int:
    """Returns how many values were appended."""
    values.extend(more)
    return len(more)


def _narrowed(logprobs: array.array) -> array.array:
    """Returns the same numbers as float32 if that holds all of them exactly (NaN counts as not)."""
    wide = np.frombuffer(logprobs)
    with np.errstate(over="ignore"):
        narrow = wide.astype(np.float32)
    return array.array("f", narrow.tobytes()) if np.array_equal(narrow, wide) else logprobs


def _to_json(value: Any) -> str:
    # As it is: two surrogates that were escaped would come back as the one character that they make.
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _digest(data: bytes | memoryview) -> bytes:
    return hashlib.blake2b(data, digest_size=_DIGEST).digest()
