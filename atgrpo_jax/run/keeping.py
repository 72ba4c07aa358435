"""Says which checkpoints of a run stay, beside the newest ones and step 0."""

import json
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from atgrpo_jax.common.files import remove_file, write_atomically
from atgrpo_jax.run.experiment import Experiment
from atgrpo_jax.run.folder import RunFolder

SCORE = "validation/success"


class Keeping:
    """What ``Experiment.keep_every`` and ``keep_best`` ask for in one folder.

    It keeps nothing in memory: the scores are in metrics.jsonl, and the checkpoints are on the disk. So a
    run that was killed keeps the same ones as another one. Only host 0 asks it.
    """

    def __init__(self, folder: RunFolder, experiment: Experiment):
        self._folder = folder
        self._every = experiment.keep_every
        self._best = experiment.keep_best

    def staying(self, steps: Collection[int]) -> set[int]:
        """Returns those of ``steps`` whose checkpoints are to stay."""
        stay = {step for step in steps if self._every and step % self._every == 0}
        best = self._best_of(steps)
        return stay if best is None else stay | {best[0]}

    def is_best(self, step: int, steps: Collection[int]) -> bool:
        """Returns whether ``step`` was scored higher than those of ``steps``, which have checkpoints."""
        best = self._best_of({*steps, step})
        return best is not None and best[0] == step

    def note(self, steps: Collection[int]) -> None:
        """Writes best.json, for people and programs. Removes it if no best checkpoint is kept."""
        best = self._best_of(steps)
        if best is None:
            remove_file(self._folder.best)
            return
        text = json.dumps({"step": best[0], SCORE: best[1]}) + "\n"
        write_atomically(self._folder.best, text.encode())

    def _best_of(self, steps: Collection[int]) -> tuple[int, float] | None:
        return best_of(self._folder.read_metrics(), steps) if self._best else None


def best_of(records: Iterable[Mapping[str, Any]], steps: Collection[int]) -> tuple[int, float] | None:
    """Returns which of ``steps`` has the best validation success, and that; None if none was scored.

    Of equals it is the earliest: it has moved least from the start, and the one that is kept already
    gives way only to a better one.
    """
    scored = [(r[SCORE], r["step"]) for r in records if SCORE in r and r["step"] in steps]
    if not scored:
        return None
    success, step = max(scored, key=lambda found: (found[0], -found[1]))
    return step, success
