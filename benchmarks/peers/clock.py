"""What the peers' scripts share: the work item as a folder, timers, and the report. Imports no peer."""

import argparse
import json
import os
import resource
import statistics
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


class Item:
    """A folder that ``run.py`` wrote: the model with its tokenizer, and item.json."""

    def __init__(self, description: str):
        parser = argparse.ArgumentParser(description=description.split("\n")[0])
        parser.add_argument("folder", type=Path)
        parser.add_argument("--warmup", type=int, default=3)
        parser.add_argument("--steps", type=int, default=9)
        parser.add_argument("--micro", type=int, default=0, help="prompts of a micro-batch; 0: all")
        args = parser.parse_args()
        self.folder, self.warmup, self.total = args.folder, args.warmup, args.warmup + args.steps
        about = json.loads((self.folder / "item.json").read_text())
        self.model: dict = about["model"]
        self.texts: list[str] = about["texts"]  # of prompts, all of one length
        self.stop_ids: list[int] = about["stop_ids"]  # that end a sample; none if all are of one length
        self.prompts, self.candidates = about["prompts"], about["candidates"]
        self.prompt_tokens, self.new_tokens = about["prompt_tokens"], about["new_tokens"]
        self.micro = args.micro or self.prompts
        self.rows = self.prompts * self.candidates
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.drawn: list[int] = []  # tokens of each step, where samples end when they like

    def batch(self, step: int) -> list[str]:
        first = step * self.prompts
        return [self.texts[(first + i) % len(self.texts)] for i in range(self.prompts)]

    def timed(self, phase: str) -> "Timer":
        return Timer(self.seconds[phase])

    def count(self, lengths: Iterable[int]) -> None:
        """Records the lengths of a step's samples."""
        lengths = list(lengths)
        assert len(lengths) == self.rows and max(lengths) <= self.new_tokens, lengths
        assert self.stop_ids or min(lengths) == self.new_tokens, lengths
        self.drawn.append(sum(lengths))

    def report(self, peer: str) -> None:
        new, whole = self.rows * self.new_tokens, self.rows * (self.prompt_tokens + self.new_tokens)
        if self.drawn:
            new = statistics.mean(self.drawn[self.warmup :])
        tokens = {"rollout": new, "update": whole, "step": new}
        for phase, seconds in self.seconds.items():
            assert len(seconds) == self.total, (phase, seconds)
            kept = seconds[self.warmup :]
            line = {
                "benchmark": peer,
                "phase": phase,
                "tokens_per_s": round(tokens[phase] / statistics.median(kept), 1),
                "seconds": round(statistics.median(kept), 4),
                "seconds_range": [round(min(kept), 4), round(max(kept), 4)],
                "first_s": round(seconds[0], 2),
                "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
            }
            print(json.dumps(line), flush=True)


class Timer:
    def __init__(self, seconds: list[float]):
        self._seconds = seconds

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *exc) -> None:
        self._seconds.append(time.perf_counter() - self._began)


def reward(text: str) -> float:
    """Spread out, so that no advantage is zero for long."""
    return sum(text.encode()) % 97 / 97
