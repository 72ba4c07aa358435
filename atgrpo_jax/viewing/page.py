"""Writes the page of a run: everything in one file, which loads nothing from elsewhere."""

import base64
import dataclasses
import gzip
import html
import importlib.resources
import json
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from atgrpo_jax.common.errors import RunError, Stopped, Unreachable
from atgrpo_jax.common.files import is_file, read_file, write_atomically
from atgrpo_jax.run.findings import findings
from atgrpo_jax.run.folder import RunFolder
from atgrpo_jax.viewing.contents import (
    Kept,
    Pieces,
    by_interest,
    evaluations,
    evenly,
    kept,
    replays,
    series,
    shown,
    summary_of,
    tokenizer_of,
    with_taught,
)
from atgrpo_jax.viewing.folders import is_running
from atgrpo_jax.viewing.meanings import sentences
from atgrpo_jax.viewing.text import SIGNS

SCRIPTS = ("words.js", "curves.js", "trees.js", "page.js")  # one script, in this order
# What a browser may do with the page: nothing but run what is in it.
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"


class Part(NamedTuple):
    """A file of episodes, as it is in the page."""

    packed: str
    problems: Sequence[str]  # of the episodes that are shown
    of: int  # episodes that the file has

    def about(self, file: Kept) -> dict[str, Any]:
        """Returns what the page knows of it before it is unpacked."""
        about = {"name": file.name, "step": file.step, "split": file.split, "title": file.title}
        about |= {"evaluation": file.number}
        return about | {"problems": self.problems, "of": self.of}


class Writer:
    """Writes the page of a run, also again and again while the run goes on.

    Args:
      steps: whose episodes are shown; those that tell most about the run if none are given.
      most_episodes: of each file; evenly chosen if there are more.
      most_mb: about how large the page may become.
      on_file: called after each file of episodes, with the share of the page that is done.
    """

    def __init__(
        self,
        folder: RunFolder,
        path: Any,
        steps: Sequence[int] = (),
        most_episodes: int = 64,
        most_mb: float = 16.0,
        on_file: Callable[[float], None] = lambda share: None,
    ):
        self.folder = folder
        self.path = path
        self._steps = steps
        self._most_episodes = most_episodes
        self._most_mb = most_mb
        self._on_file = on_file
        tokenizer, self._missing = tokenizer_of(folder)
        self._pieces = None if tokenizer is None else Pieces(tokenizer)
        self._known: dict[Kept, Part] = {}  # files of episodes do not change, so each is read once

    def write(self, reload_s: float | None = None) -> list[str]:
        """Writes the page. Returns the names of the files of episodes that are in it.

        With ``reload_s`` the page loads itself anew after so many seconds.
        """
        folder = self.folder
        played_on = replays(folder)
        files = [*kept(folder), *evaluations(folder), *played_on]
        there = [file for file in files if not self._steps or file.step in self._steps]
        looked_at = [
            file
            for file in there
            if file in played_on or (not file.number and is_file(folder.taught_by(file.step)))
        ]
        parts: dict[Kept, Part] = {}
        before, self._known = self._known, {}  # what is no longer shown is forgotten
        left = self._most_mb * 1e6
        for file in by_interest(there, looked_at):
            part = played_on.get(file) and self._part(played_on[file])
            known = None if file in looked_at else before.get(file)  # more may have been looked at since
            part = self._known[file] = part or known or self._read(file)
            left -= len(part.packed)
            if left < 0 and parts:
                break
            parts[file] = part
            self._on_file(min(max(len(parts) / len(there), 1 - left / (self._most_mb * 1e6)), 1.0))
        records = folder.read_metrics()
        curves = series(records)
        contents = {
            "title": folder.path.name,
            "summary": summary_of(folder),
            "findings": list(findings(records).values()),
            "config": read_file(folder.config).decode(),
            "steps": [record["step"] for record in records],
            "series": curves,
            "files": [parts[f].about(f) for f in sorted(parts, key=_place)],
            "kept": len(there),
            "missing": self._missing,
            "signs": SIGNS,
            "reload_s": reload_s,
            "meanings": sentences(curves),
        }
        packed = {file.name: part.packed for file, part in parts.items()}
        write_atomically(self.path, _page(folder.path.name, contents, packed).encode())
        return list(packed)

    def _read(self, file: Kept) -> Part:
        if file.number:
            return self._part(list(self.folder.read_evaluation(file.evaluation)), file.number)
        episodes = list(self.folder.read_episodes(file.step, file.split))
        with_taught(self.folder, file, episodes)
        return self._part(episodes)

    def _part(self, episodes: Sequence[dict[str, Any]], evaluation: int = 0) -> Part:
        chosen = [episodes[i] for i in evenly(len(episodes), self._most_episodes)]
        own = {"evaluation": evaluation} if evaluation else {}
        packed = _packed([shown(episode, self._pieces) | own for episode in chosen])
        return Part(packed, [episode["problem"] for episode in chosen], len(episodes))


def _place(file: Kept) -> tuple[str, int, int]:
    """Returns by what the page orders files: those of training before later evaluations of the same step."""
    return file.split, file.step, file.number


def watch(writer: Writer, every_s: float) -> None:
    """Writes a page again and again, and a last time when no process trains in the folder any more.

    A bucket that cannot be reached is tried again. After a stop (Ctrl-C) the page that is left loads
    itself no more.
    """
    folder, path = writer.folder, writer.path
    try:
        running = True
        told: int | None = None
        while running:
            try:
                running = is_running(folder)  # asked before the page is written: it has all of the end
                writer.write(every_s if running else None)
                step = len(folder.read_metrics()) - 1
                if step != told:
                    print(f"{path}: {f'step {step}' if step >= 0 else 'no step yet'}", flush=True)
                told = step
            except Unreachable as error:
                running = True  # nobody knows
                print(f"{error}; tried again in {every_s:g} s", flush=True)
            if running:
                time.sleep(every_s)
        print(f"nothing trains in {folder.path} any more; this is the last page")
    except Stopped as stopped:
        writer.write()
        stopped.note = f"{path} stays as it is; the run goes on"
        raise


def write_page(folder: RunFolder, path: Any, **settings: Any) -> list[str]:
    """Writes the page of a run once, with settings of ``Writer``. Returns what ``Writer.write`` does."""
    return Writer(folder, path, **settings).write()


@dataclasses.dataclass(frozen=True)
class Tree:
    """One episode, as a tree: plain data, which a notebook draws."""

    data: dict[str, Any]  # see docs/episodes.md

    def _repr_html_(self) -> str:
        file = Kept(self.data["step"], self.data["split"])
        name = file.name
        part = Part(_packed([self.data]), [self.data["problem"]], 1)
        contents = {
            "title": name, "summary": {}, "findings": [], "config": "", "steps": [], "series": {},
            "files": [part.about(file)], "kept": 1, "missing": "", "signs": SIGNS, "reload_s": None,
            "inline": True, "meanings": {},
        }  # fmt: skip
        whole = html.escape(_page(name, contents, {name: part.packed}))
        frame = 'sandbox="allow-scripts" style="width: 100%; height: 640px; border: 0"'
        return f'<iframe srcdoc="{whole}" {frame}></iframe>'


def tree(
    run_dir: str | os.PathLike[str], step: int, instance: int, split: str = "train", episode: int = 0
) -> Tree:
    """Returns one episode of a run. At the end of a notebook's cell it is drawn.

    Raises RunError if there is no such run, or no such episode is kept.
    """
    folder = RunFolder(run_dir)
    if not folder.exists():
        raise RunError(f"{folder.path} holds no run")
    tokenizer, _ = tokenizer_of(folder)
    try:
        found = [e for e in folder.read_episodes(step, split) if e["instance"] == instance]
        with_taught(folder, Kept(step, split), found)
    except FileNotFoundError as error:
        raise RunError(f"{folder.path} keeps no episodes of {split} in step {step}") from error
    for one in found:
        if one["episode"] == episode:
            return Tree(shown(one, None if tokenizer is None else Pieces(tokenizer)))
    raise RunError(f"step {step} of {folder.path} has no episode {episode} of {split} instance {instance}")


def _page(title: str, contents: dict[str, Any], parts: dict[str, str]) -> str:
    def own(name: str) -> str:
        return importlib.resources.files("atgrpo_jax.viewing").joinpath(name).read_text(encoding="utf-8")

    data = "\n".join(
        f'<script type="text/plain" id="{name}">{packed}</script>'
        for name, packed in [("contents", _packed(contents)), *parts.items()]
    )
    filled = {
        "TITLE": html.escape(title),
        "POLICY": POLICY,
        "STYLE": own("uPlot.min.css") + own("page.css"),
        "LIBRARY": own("uPlot.iife.min.js"),
        "DATA": data,
        "SCRIPT": "\n".join(map(own, SCRIPTS)),
    }
    page = own("page.html")
    for name, value in filled.items():
        page = page.replace(f"{{{{{name}}}}}", value, 1)
    return page


def _packed(value: Any) -> str:
    """Returns a value as base64 of gzipped JSON: nothing in it can end a script, whatever it says."""
    plain = json.dumps(value, separators=(",", ":")).encode()
    # Level 9 would take three times as long and save a fiftieth.
    return base64.b64encode(gzip.compress(plain, 6, mtime=0)).decode()
