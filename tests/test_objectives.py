"""Losses over whole answers, and losses of one's own: against plain rows, one answer each."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from shared_learner import MODEL, items, packed

from atgrpo_jax.update.batch import BatchConfig, answers
from atgrpo_jax.update.loss import sequence_log_ratio

DOCS = Path(__file__).parents[1] / "docs" / "your-loss.md"
LEARNING_RATE = 1e-3
FORWARD = jax.jit(MODEL.apply)


def documented(name: str, tmp_path: Path) -> str:
    """The source that docs/your-loss.md shows for a class."""
    blocks = re.findall(r"^```python\n(.*?)^```", DOCS.read_text(), re.DOTALL | re.MULTILINE)
    (source,) = (block for block in blocks if f"class {name}" in block)
    return source


def test_an_answers_ratio_is_the_mean_over_its_tokens():
    new = jnp.array([[1.0, 2.0, 5.0, 9.0], [4.0, 0.0, 0.0, np.nan]])
    answers_BT = jnp.array([[1, 1, 2, 0], [1, 1, 1, 0]])
    found = sequence_log_ratio(new, jnp.zeros((2, 4)), answers_BT)
    np.testing.assert_allclose(found, [[1.5, 1.5, 5, 0], [4 / 3, 4 / 3, 4 / 3, 0]], rtol=1e-6)


def test_answers_are_numbered_in_each_row():
    micro = jax.tree.map(lambda x: x[0], packed(items(), BatchConfig(row_tokens=64, rows=2)))
    lengths = [[len(c.sample.tokens) for c in item.group.candidates] for item in items()]
    rows = {tuple(np.bincount(row)[1:].tolist()) for row in np.asarray(answers(micro))}
    assert rows == {(*lengths[2], *lengths[1]), tuple(lengths[0])}  # the longest first
