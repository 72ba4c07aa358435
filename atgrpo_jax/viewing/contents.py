"""Chooses what of a run a page shows, and makes it small."""

import dataclasses
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from atgrpo_jax.common.errors import RunError, UserError
from atgrpo_jax.common.files import names_in, read_json_lines
from atgrpo_jax.run import gin_config
from atgrpo_jax.run.folder import RunFolder
from atgrpo_jax.run.nodes import speaker
from atgrpo_jax.tokens.tokens import Tokenizer

REPLAYS = "replay"  # in place of the split, for a page's file of replays
FINE = 5  # significant digits of the numbers that a page shows


@dataclasses.dataclass(frozen=True)
class Kept:
    """Names a file of episodes."""

    step: int
    split: str
    evaluation: str = ""  # the name of the file, if a later ``evaluate`` wrote it: 0002_test.jsonl.gz
    how: str = ""  # and how it drew, in words

    @property
    def number(self) -> int:
        """Returns which of the later evaluations it is, from 1; 0 if it is none."""
        return int(self.evaluation.partition("_")[0] or 0)

    @property
    def name(self) -> str:
        return f"{self.split}-{self.step}" + (f"-evaluation{self.number}" if self.number else "")

    @property
    def title(self) -> str:
        later = f", evaluation {self.number}{self.how}" if self.number else ""
        return f"{self.split}, step {self.step}{later}"


def kept(folder: RunFolder) -> list[Kept]:
    """Returns the files of episodes that a run has: those of training, then of other splits, by step."""
    files = [Kept(step, split) for step, split in folder.kept_episodes()]
    return sorted(files, key=lambda file: (file.split != "train", file.split, file.step))


def evaluations(folder: RunFolder) -> list[Kept]:
    """Returns the files of episodes that later calls of ``evaluate`` wrote, in their order."""
    there = names_in(folder.evaluated)
    found = []
    for record in read_json_lines(folder.evaluations):
        name = record.get("episodes", "").rpartition("/")[2]  # records of older versions have none
        if name in there:
            found.append(Kept(record["step"], record["split"], name, _how(record)))
    return found


def _how(record: Mapping[str, Any]) -> str:
    changed = sorted({param.partition("=")[0].strip() for param in record.get("gin_param") or ()})
    how = f" at temperature {record['temperature']:g}" if "temperature" in record else ""
    how += f", {' and '.join(record['swap'])} swapped" if "swap" in record else ""
    return how + (f", with another {', '.join(changed)}" if changed else "")


def replays(folder: RunFolder) -> dict[Kept, list[dict[str, Any]]]:
    """Returns the episodes that were played on in another way (docs/replay.md), as files by step."""
    found: dict[Kept, list[dict[str, Any]]] = {}
    for record in folder.read_replays():
        found.setdefault(Kept(record["step"], REPLAYS), []).append(record)
    return found


def with_taught(folder: RunFolder, file: Kept, episodes: Sequence[dict[str, Any]]) -> None:
    """Adds a field ``taught`` to the candidates of training episodes, if a replay has computed it."""
    if file.split != "train":
        return
    places = {}
    for episode in episodes:
        for group in episode["groups"]:
            place = episode["instance"], episode["episode"], group["turn"], group["stage"], speaker(group)
            places[place] = group["candidates"]
    for line in folder.read_taught(file.step):
        place = tuple(line[name] for name in ("instance", "episode", "turn", "stage", "speaker"))
        if place in places:
            places[place][line["k"]]["taught"] = {name: line[name] for name in ("after", "weight")}


def by_interest(files: Sequence[Kept], first: Collection[Kept] = ()) -> Iterator[Kept]:
    """Yields all files, such that those that come early tell most about the whole run.

    They are those of ``first``, then the last and the first of each split, then those halfway between two
    that were named. Later evaluations count as a split.
    """
    yield from first
    splits: dict[str, list[Kept]] = {}
    for file in files:
        if file in first:
            continue
        splits.setdefault("later" if file.number else file.split, []).append(file)
    orders = [[own[i] for i in _halving(len(own))] for own in splits.values()]
    for place in range(max(map(len, orders), default=0)):
        for order in orders:
            if place < len(order):
                yield order[place]


def _halving(count: int) -> list[int]:
    """Returns 0 ... count - 1: the last, the first, the middle, the middles of both halves, ..."""
    order = dict.fromkeys([count - 1, 0] if count > 1 else [0] if count else [])
    parts = [(0, count - 1)]
    while parts:
        parts = [half for low, high in parts for half in _halves(low, high, order)]
    return list(order)


def _halves(low: int, high: int, order: dict[int, None]) -> list[tuple[int, int]]:
    if high - low < 2:
        return []
    middle = (low + high) // 2
    order[middle] = None
    return [(low, middle), (middle, high)]


def evenly(count: int, most: int) -> list[int]:
    """Returns at most so many of 0 ... count - 1, at equal distances, the first one included."""
    return list(range(count)) if count <= most else [i * count // most for i in range(most)]


def tokenizer_of(folder: RunFolder) -> tuple[Tokenizer | None, str]:
    """Returns the run's tokenizer; or none, and why there is none."""
    try:
        return gin_config.load(str(folder.config)).tokenizer, ""
    except (UserError, ImportError, OSError) as error:
        return None, f"Single tokens are not shown, because the config cannot be built here: {error}"


class Pieces(dict[int, str]):
    """The text of each token by itself."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer

    def __missing__(self, token: int) -> str:
        self[token] = self._tokenizer.decode([token])
        return self[token]


def shown(episode: dict[str, Any], pieces: Pieces | None) -> dict[str, Any]:
    """Returns what a page shows of an episode: with the text of each token, without token ids.

    A candidate may have a field ``taught``, which says what the step's update did to its tokens:
    {"after": the logprob of each one then, "weight": how much likelier the update was to make it}.
    """
    groups = []
    for group in episode["groups"]:
        plain = {name: value for name, value in group.items() if name not in ("prompt_ids", "candidates")}
        groups.append(plain | {"candidates": [_candidate(c, pieces) for c in group["candidates"]]})
    return episode | {"groups": groups}


def _candidate(candidate: Mapping[str, Any], pieces: Pieces | None) -> dict[str, Any]:
    left_out = ("tokens", "logprobs", "drawn_logprobs", "taught")
    plain = {name: _short(value) for name, value in candidate.items() if name not in left_out}
    said = [] if pieces is None else [pieces[token] for token in candidate["tokens"]]
    if said and "".join(said) == candidate["text"]:  # else a character lies across tokens
        plain["pieces"] = said
    elif said[:-1] and "".join(said[:-1]) == candidate["text"]:
        plain["pieces"] = said[:-1]  # the last one is the stop token, which the text leaves out
    if candidate.get("taught"):
        after, weights = candidate["taught"]["after"], candidate["taught"]["weight"]
        plain["taught"] = {"after": _rounded(after), "weight": [_short(float(x)) for x in weights]}
    return plain | {"logprobs": _rounded(candidate["logprobs"])}


def _rounded(values: Sequence[float]) -> list[float]:
    """Returns values of tokens to five decimals: a small change of a large one is still seen."""
    return [round(value, 5) for value in values]


def _short(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{FINE}g}")
    if isinstance(value, Mapping):
        return {name: _short(one) for name, one in value.items()}
    return value


def series(records: Sequence[Mapping[str, Any]]) -> dict[str, list[float | None]]:
    """Returns each metric's values by step; None where a step has none."""
    names = sorted({name for record in records for name in record} - {"step"})
    return {name: [_short(record.get(name)) for record in records] for name in names}


def summary_of(folder: RunFolder) -> dict[str, Any]:
    """Returns the summary of a run that has ended; else nothing."""
    try:
        return json.loads(folder.summary.read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise RunError(f"{folder.summary}: not JSON ({error}); delete it, train writes it again") from error
