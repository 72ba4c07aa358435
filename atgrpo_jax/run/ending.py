"""Says which step of a run is its last one: by number, or by the tokens that were drawn."""

from collections.abc import Mapping, Sequence
from typing import Any

# Metrics: the tokens of all candidates of a step, and those that were drawn to play on from candidates.
_TOKENS = "rollout/tokens", "counterfactual/tokens"


def drawn_tokens(record: Mapping[str, Any]) -> float:
    """Returns how many tokens a training step has drawn, by its metrics."""
    return sum(record.get(name, 0.0) for name in _TOKENS)


class Ending:
    """Knows the last step of a run.

    That is number ``Experiment.steps``, or an earlier one: the first by which ``Experiment.tokens``
    were drawn, if these are not 0. Which one this is depends on the records of the run alone, so a
    run that was killed ends after the same step.

    Args:
      records: those of the steps that are done, from step 0 on.
    """

    def __init__(self, steps: int, tokens: int, records: Sequence[Mapping[str, Any]] = ()):
        self.last = steps
        self._tokens = tokens
        self._drawn = 0.0
        for step, record in enumerate(records):
            self.count(step, record)

    @property
    def known(self) -> int | None:
        """Returns the last step; None if it is not known yet."""
        return None if self._drawn < self._tokens else self.last

    def count(self, step: int, record: Mapping[str, Any]) -> None:
        """Counts what a step has drawn."""
        self._drawn += drawn_tokens(record)
        if self._tokens and self._drawn >= self._tokens:
            self.last = min(self.last, step)

    def shown(self) -> dict[str, str]:
        """Returns what the terminal shows of it."""
        return {"of all tokens": f"{self._drawn:,.0f}/{self._tokens:,}"} if self._tokens else {}
