"""Says how episodes are written down. docs/episodes.md explains each field."""

import gzip
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from atgrpo_jax.common.errors import RunError
from atgrpo_jax.common.files import Place, read_file
from atgrpo_jax.common.types import Candidate, Episode, Group, GroupKey
from atgrpo_jax.credit.groups import Credited
from atgrpo_jax.tokens.tokens import Tokenizer

# To be counted up whenever a field changes its name or meaning, or there is a new one.
SCHEMA = 3


def written(
    step: int, episodes: Sequence[Episode], credited: Iterable[Credited], tokenizer: Tokenizer, alpha: Any
) -> bytes:
    """Returns the content of a file of episodes: gzipped lines, one for each episode.

    The same episodes always give the same bytes.

    Args:
      step: the training step that they belong to.
      credited: their groups with advantages; none for an evaluation.
      alpha: from a role to the weight of the team part in its mixed reward.
    """
    items = {item.group.origin.key: item for item in credited}
    buffer = io.BytesIO()
    # Other hosts wait meanwhile: level 9 would take eight times as long and save a fifth.
    with gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0, compresslevel=1) as file:
        for episode in episodes:
            record = _episode(step, episode, items, tokenizer, alpha)
            file.write(json.dumps(record).encode() + b"\n")
    return buffer.getvalue()


def read(path: Place) -> Iterator[dict[str, Any]]:
    """Yields the episodes of a file. Raises RunError if they have another schema."""
    for line in gzip.decompress(read_file(path)).splitlines():
        episode = json.loads(line)
        found = episode.get("schema", 1)
        if found == 2:  # the same without boards, and without metrics of the task
            episode = {"board": None} | episode
            for group in episode["groups"]:
                group["board"] = None
                group["candidates"] = [{"metrics": {}} | one for one in group["candidates"]]
        elif found != SCHEMA:
            raise RunError(
                f"{path} has schema {found}, and this version reads 2 and {SCHEMA}: read the run with the "
                "version that made it (docs/episodes.md)"
            )
        yield episode


def _episode(
    step: int, episode: Episode, items: dict[GroupKey, Credited], tokenizer: Tokenizer, alpha: Any
) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "step": step,
        "split": episode.split,
        "instance": episode.instance,
        "episode": episode.episode,
        "problem": episode.problem,
        "solved": episode.solved,
        "end": episode.end,
        "turns": episode.turns,
        "board": episode.board,
        "groups": [
            _group(group, items.get(group.origin.key), tokenizer, alpha[group.origin.key.role])
            for group in episode.groups
        ],
    }


def _group(group: Group, item: Credited | None, tokenizer: Tokenizer, alpha: float) -> dict[str, Any]:
    origin = group.origin
    key = origin.key
    count = len(group.candidates)
    advantages = [None] * count if item is None else [float(a) for a in item.advantages_K]
    trained = [False] * count if item is None else [bool(m) for m in item.mask_K]
    return {
        "turn": key.turn,
        "stage": key.stage,
        "role": key.role,
        "seat": key.seat,
        "policy": origin.policy,
        "version": origin.version,
        "temperature": origin.sampling.temperature,
        "state": origin.state_digest,
        "prompt": tokenizer.decode(origin.prompt_ids),
        "prompt_ids": origin.prompt_ids,
        "board": group.board,
        "executed": group.chosen,
        "candidates": [
            _candidate(candidate, alpha) | {"advantage": advantage, "trained": counts}
            for candidate, advantage, counts in zip(group.candidates, advantages, trained, strict=True)
        ],
    }


def _candidate(candidate: Candidate, alpha: float) -> dict[str, Any]:
    reward = candidate.reward
    return {
        "text": candidate.text,
        "tokens": candidate.sample.tokens,
        "logprobs": candidate.sample.logprobs,
        "drawn_logprobs": candidate.sample.drawn_logprobs,
        "finish": candidate.sample.finish,
        "outcome": candidate.outcome.value,
        "team": reward.team if reward else None,
        "local": reward.local if reward else None,
        "mixed": reward.mixed(alpha) if reward else None,
        "parts": dict(reward.parts) if reward else None,
        "note": candidate.note,
        "metrics": dict(candidate.metrics),
        "programs": [ran._asdict() for ran in candidate.programs],
    }
