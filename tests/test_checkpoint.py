import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atgrpo_jax.common.errors import RunError
from atgrpo_jax.run.checkpoint import Checkpoints

TREE = {"shared": {"w": jnp.arange(12, dtype=jnp.float32).reshape(3, 4), "n": jnp.int32(7)}}
SHAPES = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), TREE)


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(tmp_path / "c", "me", keep=2)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_round_trip_is_exact(checkpoints):
    assert checkpoints.latest() is None
    checkpoints.save(3, TREE, version=7)
    assert checkpoints.latest() == 3
    restored, version = checkpoints.restore(3, SHAPES)
    jax.tree.map(np.testing.assert_array_equal, restored, TREE)
    assert version == 7


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


def damage(path):
    for file in (path / "state" / "d").iterdir():
        file.write_bytes(b"")


def newest(checkpoints):
    step = checkpoints.newest()
    return None if step is None else (step, checkpoints.restore(step, SHAPES)[0])


def test_a_damaged_checkpoint_gives_way_to_the_one_before(checkpoints, tmp_path, capsys):
    assert newest(checkpoints) is None
    folder = tmp_path / "c"
    for step in (0, 1, 2):
        checkpoints.save(step, TREE)
    damage(folder / "2")
    (folder / "3").mkdir()
    step, found = newest(checkpoints)
    assert step == 1
    jax.tree.map(np.testing.assert_array_equal, found, TREE)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert re.search(r"checkpoint 3 in .* is damaged: .*saved.json cannot be read", lines[0])
    assert re.search(
        r"checkpoint 2 in .* is damaged: .*; moved to 2.damaged, step 1 is taken instead", lines[1]
    )
    assert names(folder) == ["0", "1", "2.damaged", "3.damaged"]
    checkpoints.save(2, TREE)
    damage(folder / "2")
    assert newest(checkpoints)[0] == 1
    assert names(folder) == ["0", "1", "2.damaged", "2.damaged1", "3.damaged"]


def test_with_no_whole_checkpoint_left_nothing_is_touched(checkpoints, tmp_path, capsys):
    for step in (0, 1):
        checkpoints.save(step, TREE)
        damage(tmp_path / "c" / str(step))
    with pytest.raises(RunError, match="no checkpoint in .* is whole; start the run anew in another folder"):
        newest(checkpoints)
    assert capsys.readouterr().err.count("is damaged") == 2
    assert names(tmp_path / "c") == ["0", "1"]


def test_another_config_is_no_damage(checkpoints, tmp_path):
    for step in (0, 1):
        checkpoints.save(step, TREE)
    with pytest.raises(RunError, match="belongs to another config"):
        newest(Checkpoints(tmp_path / "c", "somebody else"))
    assert names(tmp_path / "c") == ["0", "1"]


def test_a_checkpoint_of_another_step_is_damaged(checkpoints, tmp_path):
    checkpoints.save(1, TREE)
    shutil.copytree(tmp_path / "c" / "1", tmp_path / "c" / "7")
    with pytest.raises(RunError, match="checkpoint 7 in .* is damaged: it is not of that step, but of 1"):
        checkpoints.restore(7, SHAPES)
    assert newest(checkpoints)[0] == 1


def test_a_base_is_bound_to_its_checkpoints(tmp_path):
    """One of the same shapes and config is another, if another run saved it."""

    def begun(name, factor):
        made = Checkpoints(tmp_path / name / "c", "me")
        made.save(0, TREE, base=jax.tree.map(lambda x: x * factor, TREE))
        return Checkpoints(tmp_path / name / "c", "me", read_only=True)

    one = begun("one", 1)
    begun("two", 2)
    jax.tree.map(np.testing.assert_array_equal, one.restore_base(SHAPES), TREE)
    one.restore(0, SHAPES)
    shutil.rmtree(tmp_path / "one" / "base")
    shutil.copytree(tmp_path / "two" / "base", tmp_path / "one" / "base")
    mixed = Checkpoints(tmp_path / "one" / "c", "me")
    mixed.restore_base(SHAPES)
    with pytest.raises(
        RunError, match="checkpoint 0 in .* belongs to another base than .*; put its own back"
    ):
        newest(mixed)
    damage(tmp_path / "one" / "base")
    anew = Checkpoints(tmp_path / "one" / "c", "me")
    with pytest.raises(RunError, match="the base of the adapters cannot be read: .* start the run anew"):
        anew.restore_base(SHAPES)


def test_only_what_was_saved_is_removed(checkpoints, tmp_path):
    folder = tmp_path / "c"
    for name in ("1", "02", "3_copy", "4.damaged", "\u0665"):
        (folder / name).mkdir()
    (folder / "6").write_bytes(b"")
    before = names(folder)
    for step in (7, 8, 9):
        checkpoints.save(step, TREE)
    assert names(folder) == sorted([*before, "8", "9"])


def test_half_written_and_half_removed_ones_go_when_the_folder_is_opened(checkpoints, tmp_path):
    folder = tmp_path / "c"
    checkpoints.save(1, TREE)
    (folder / ".2.0123.partial" / "state").mkdir(parents=True)
    (tmp_path / ".base.0123.partial").mkdir()
    Checkpoints(folder, "me", read_only=True)
    assert names(folder) == [".2.0123.partial", "1"]
    Checkpoints(folder, "me")
    assert names(folder) == ["1"] and names(tmp_path) == ["c"]
