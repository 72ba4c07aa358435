import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atgrpo_jax.checkpoint import Checkpoints
from atgrpo_jax.errors import RunError

# Orbax abandons its own coroutines when a read fails; what counts is the error it raises.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

TREE = {"shared": {"w": jnp.arange(12, dtype=jnp.float32).reshape(3, 4), "n": jnp.int32(7)}}
SHAPES = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), TREE)


@pytest.fixture
def checkpoints(tmp_path):
    made = Checkpoints(tmp_path / "c", "me", keep=2)
    yield made


def test_round_trip_is_exact(checkpoints):
    assert checkpoints.latest() is None
    checkpoints.save(3, TREE)
    assert checkpoints.latest() == 3
    restored = checkpoints.restore(3, SHAPES)
    jax.tree.map(np.testing.assert_array_equal, restored, TREE)


def test_the_newest_and_step_0_are_kept(checkpoints, tmp_path):
    for step in (0, 1, 2, 3, 4):
        checkpoints.save(step, TREE)
    assert sorted(int(p.name) for p in (tmp_path / "c").iterdir() if p.name.isdigit()) == [0, 3, 4]


def test_a_missing_step_says_which_there_are(checkpoints):
    checkpoints.save(3, TREE)
    with pytest.raises(RunError, match=r"there is no checkpoint 5 in .* \(steps: 3\)"):
        checkpoints.restore(5, SHAPES)


def test_a_foreign_checkpoint_is_refused(checkpoints, tmp_path):
    checkpoints.save(3, TREE)
    other = Checkpoints(tmp_path / "c", "somebody else", read_only=True)
    with pytest.raises(RunError, match="checkpoint 3 in .* belongs to another config"):
        other.restore(3, SHAPES)


def test_other_shapes_are_refused(checkpoints):
    checkpoints.save(3, TREE)
    wrong = {"shared": {"w": jax.ShapeDtypeStruct((4, 4), jnp.float32), "n": SHAPES["shared"]["n"]}}
    with pytest.raises(RunError, match=r"other arrays: .*'w'.* is .*3, 4.*, not .*4, 4"):
        checkpoints.restore(3, wrong)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "gone"])
def test_a_damaged_checkpoint_is_refused(checkpoints, tmp_path, damage):
    checkpoints.save(3, TREE)
    state = tmp_path / "c" / "3" / "state"
    if damage == "gone":
        shutil.rmtree(state)
    else:
        files = [p for p in state.rglob("*") if p.is_file() and "/d/" in str(p)]
        assert files
        for path in files:
            data = bytearray(path.read_bytes())
            middle = len(data) // 2
            if damage == "truncated":
                path.write_bytes(data[:middle])
            else:
                data[middle] ^= 0xFF
                path.write_bytes(data)
    with pytest.raises(RunError, match="checkpoint 3 in .* is damaged: .* (cannot be read|is not what)"):
        checkpoints.restore(3, SHAPES)
