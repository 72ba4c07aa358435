"""Keeps what partners answered, in files of JSON lines. An answer is on the disk before it is used.

So a run that goes on, or is scored again, gets the same answers and asks for none of them twice.
"""

import dataclasses
import itertools
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from atgrpo_jax.common.errors import RunError
from atgrpo_jax.common.files import (
    Place,
    append,
    make_folder,
    names_in,
    read_file,
    read_json_lines,
    sync_folder,
    write_atomically,
)
from atgrpo_jax.common.progress import counted
from atgrpo_jax.common.types import GroupKey, Message, Sample

Kind = Literal["step", "evaluated"]  # of a file: of a training run, or of later evaluations
_NAME = re.compile(r"(?:step|evaluated)_[0-9]{6,}\.jsonl")


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a partner answered. ``finish`` is "error" if its server has no answer to this prompt."""

    text: str
    finish: Literal["stop", "length", "error"]
    model: str  # as the server calls what answered; "" if the prompt was too long for it
    prompt_tokens: int = 0  # as the server counts them
    answer_tokens: int = 0

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.answer_tokens

    @property
    def sample(self) -> Sample:
        """Returns a sample without tokens, which are not ours."""
        too_long = self.finish == "error" and not self.model
        return Sample((), (), "too_long" if too_long else self.finish, version=-1)


@dataclasses.dataclass(frozen=True)
class Cost:
    """Counts what a role's partner has answered so far."""

    answers: int = 0  # recorded ones as well
    prompt_tokens: int = 0
    answer_tokens: int = 0
    truncated: int = 0  # answers that ended at the limit of tokens
    empty: int = 0  # answers without a text
    refused: int = 0  # prompts to which the server has no answer
    asked: int = 0  # answers that were asked for now, and not recorded before
    seconds: float = 0.0  # that these took, one after the other

    @classmethod
    def of(cls, answer: Answer, asked: bool, seconds: float) -> "Cost":
        return cls(
            1,
            answer.prompt_tokens,
            answer.answer_tokens,
            truncated=int(answer.finish == "length"),
            empty=int(answer.finish != "error" and not answer.text),
            refused=int(answer.finish == "error"),
            asked=int(asked),
            seconds=seconds,
        )

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.answer_tokens

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*map(sum, zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))

    def __sub__(self, other: "Cost") -> "Cost":
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return Cost(*(one - two for one, two in pairs))

    def __str__(self) -> str:
        return (
            f"{counted(self.answers, 'answer')}, {self.asked} of them asked for now ({self.seconds:.1f} s "
            f"in all) and the others recorded before; {counted(self.prompt_tokens, 'token')} of prompts, "
            f"{self.answer_tokens} of answers"
        )


class Partners(Protocol):
    """What the rollout is offered for roles that have partners."""

    @property
    def costs(self) -> Mapping[str, Cost]:
        """Returns what each role's partner has answered so far, in this process."""
        ...

    async def ask(self, messages: Sequence[Message], key: GroupKey, spoken: bool) -> tuple[Sample, str]:
        """Returns what the partner of ``key.role`` answers: a sample without tokens, and its text.

        ``spoken`` says whether any role has spoken in this episode.
        """
        ...


class Records:
    """Holds the answers of a run: those in the files of a folder, and those that are added.

    Args:
      folder: where the files are; None keeps nothing.
      kind: which files are added to.
      check_ours: raises if the folder is no longer this process's.

    Raises RunError that names the file and line for a line that is no answer.
    """

    def __init__(self, folder: Place | None, kind: Kind, check_ours: Callable[[], None] = lambda: None):
        self._folder = folder
        self._kind = kind
        self._check_ours = check_ours
        self._known: dict[tuple[str, str], Answer] = {}
        self._roles: dict[str, list[Answer]] = {}
        self._unwritten: list[tuple[str, bytes]] = []  # (name of a file, line)
        self._writing = threading.Lock()
        if folder is not None:
            for name in sorted(filter(_NAME.fullmatch, names_in(folder))):
                self._read(folder / name)

    def find(self, at: str, prompt: str) -> Answer | None:
        """Returns the answer that was given at an address, to a prompt with this digest."""
        return self._known.get((at, prompt))

    def of(self, role: str) -> Sequence[Answer]:
        """Returns all answers of a role's partner, in the order in which they came."""
        return self._roles.get(role, ())

    def add(self, role: str, step: int, at: str, prompt: str, answer: Answer) -> None:
        """Adds an answer. It is on the disk when the function returns. Threads may call this at once.

        Raises OSError or RunError if it cannot be written.
        """
        self._take(role, at, prompt, answer)
        if self._folder is None:
            return
        record = {"role": role, "at": at, "prompt": prompt} | dataclasses.asdict(answer)
        line = json.dumps(record).encode() + b"\n"
        self._unwritten.append((f"{self._kind}_{step:06d}.jsonl", line))
        with self._writing:  # whoever comes first writes the lines of all who wait
            lines = self._unwritten[:]
            self._write(lines)
            del self._unwritten[: len(lines)]

    def _write(self, lines: Sequence[tuple[str, bytes]]) -> None:
        assert self._folder is not None
        if lines:
            self._check_ours()
            make_folder(self._folder)
        for name, own in itertools.groupby(lines, key=lambda line: line[0]):
            path = self._folder / name
            new = isinstance(path, Path) and not path.exists()
            append(path, b"".join(line for _, line in own))
            if new:
                sync_folder(path.parent)

    def _read(self, path: Place) -> None:
        if path.name.startswith(self._kind):
            _mend(path)
        for number, record in enumerate(read_json_lines(path), start=1):
            try:
                role, at, prompt, answer = _parsed(**record)
            except (TypeError, ValueError):
                raise RunError(
                    f"{path}, line {number}: this is no answer of a partner; put the file back, or remove "
                    "it and the partners are asked again"
                ) from None
            self._take(role, at, prompt, answer)

    def _take(self, role: str, at: str, prompt: str, answer: Answer) -> None:
        if (at, prompt) not in self._known:
            self._known[at, prompt] = answer
            self._roles.setdefault(role, []).append(answer)


def _mend(path: Place) -> None:
    """Removes a last line that a crash cut short, so that more can be appended."""
    data = read_file(path)
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        write_atomically(path, whole)


def _parsed(role: Any, at: Any, prompt: Any, **fields: Any) -> tuple[str, str, str, Answer]:
    """Raises TypeError or ValueError unless the record has exactly the right fields."""
    answer = Answer(**fields)
    texts = role, at, prompt, answer.text, answer.model
    counts = answer.prompt_tokens, answer.answer_tokens
    right = all(type(text) is str for text in texts) and all(type(n) is int and n >= 0 for n in counts)
    if not right or answer.finish not in ("stop", "length", "error"):
        raise ValueError("a field of another type")
    return role, at, prompt, answer


def costs_since(partners: Partners | None, before: Mapping[str, Cost]) -> Iterator[tuple[str, Cost]]:
    """Yields each role that has a partner, and what this one has answered since ``before``."""
    for role, cost in sorted(partners.costs.items()) if partners is not None else ():
        yield role, cost - before.get(role, Cost())
