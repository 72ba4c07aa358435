"""What updates of a policy leave behind: their metrics, and whether its numbers are still finite."""

from typing import Any, NamedTuple

import numpy as np

from atgrpo_jax.arrays.finite_trees import check_tree
from atgrpo_jax.common.finite import LOWER, NotFinite, check_finite

STATE_FINITE = "state_finite"  # of a record: parameters and optimizer after the update
_SAID = {
    "loss": "the loss",
    "grad_norm": "the gradient's norm",
    "logprob_gap": "the largest |learner - sampler| logprob",
}


class Updates(NamedTuple):
    """On the devices, maybe still being computed, until ``jax.device_get``."""

    records: list[dict[str, Any]]  # metrics of each
    tokens: int  # that they ran on

    def metrics(self) -> dict[str, float]:
        """Means over the updates, their number, the tokens, and ``logprob_gap`` of the first update alone,
        where the learner still is the sampler's policy."""
        counts = {"updates": float(len(self.records)), "trained_tokens": float(self.tokens)}
        if not self.records:
            return counts
        names = [name for name in self.records[0] if name != STATE_FINITE]
        means = {name: float(np.mean([r[name] for r in self.records])) for name in names}
        return means | counts | {"logprob_gap": float(self.records[0]["logprob_gap"])}

    def check(self, where: str, state: Any) -> None:
        """Raises NotFinite for the first number of the first update that is not finite.

        Args:
          state: after all of them; names the tensors.
        """
        for number, record in enumerate(self.records, start=1):
            place = f"{where}, update {number} of {len(self.records)}"
            first = {said: record[name] for name, said in _SAID.items()}
            rest = {f"the metric {name}": record[name] for name in record if name not in _SAID}
            check_finite(first | rest, place, LOWER)
            if not record[STATE_FINITE]:
                check_tree(state, place, LOWER)
                raise NotFinite(place, "parameters or optimizer are not finite", LOWER)
