"""Holds the metrics of a policy's updates, and checks that its numbers are still finite."""

from typing import Any, NamedTuple

import numpy as np

from atgrpo_jax.arrays.finite_trees import check_tree
from atgrpo_jax.common.finite import LOWER, NotFinite, check_finite

# The key in a record that says whether parameters and optimizer state are finite after the update.
STATE_FINITE = "state_finite"
_SAID = {
    "loss": "the loss",
    "grad_norm": "the gradient's norm",
    "logprob_gap": "the largest |learner - sampler| logprob",
}


class Updates(NamedTuple):
    """The results of a policy's updates in one step, in order.

    They are on the devices, and may still be being computed, until ``jax.device_get``.
    """

    records: list[dict[str, Any]]  # metrics of each update
    tokens: int  # that the updates ran on, prompts included

    def metrics(self, lag: int = 0) -> dict[str, float]:
        """Returns the mean of each metric over the updates, their number and their tokens.

        ``logprob_gap`` is that of the first update alone. Only there does the learner still have
        the weights that drew the samples. With a ``lag`` it has them nowhere: what it measures then is
        how far the policy has moved since, and is called ``lag_gap``.
        """
        counts = {"updates": float(len(self.records)), "trained_tokens": float(self.tokens)}
        if not self.records:
            return counts
        gap = {"lag_gap" if lag else "logprob_gap": float(self.records[0]["logprob_gap"])}
        names = [name for name in self.records[0] if name not in (STATE_FINITE, "logprob_gap")]
        means = {}
        for name in names:
            means[name] = float(np.mean([record[name] for record in self.records]))
        return means | counts | gap

    def check(self, where: str, state: Any) -> None:
        """Raises NotFinite for the first number of the first update that is not finite.

        Args:
          state: the state after all updates; its tensors' names go into the error.
        """
        for number, record in enumerate(self.records, start=1):
            place = f"{where}, update {number} of {len(self.records)}"
            first = {said: record[name] for name, said in _SAID.items()}
            rest = {f"the metric {name}": record[name] for name in record if name not in _SAID}
            check_finite(first | rest, place, LOWER)
            if not record[STATE_FINITE]:
                check_tree(state, place, LOWER)
                raise NotFinite(place, "parameters or optimizer are not finite", LOWER)
