"""Saved trees: whole, verified, or refused."""

import errno
import fcntl
import json
import os
import shutil
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from atgrpo_jax.arrays import trees
from atgrpo_jax.arrays.trees import Damaged, about_tree, read_tree, write_tree
from atgrpo_jax.common.errors import RunError


def tree(first=0.0):
    mesh = Mesh(np.array(jax.devices()), ("x",))
    spread = NamedSharding(mesh, PartitionSpec("x"))
    return {
        "spread": jax.device_put(jnp.arange(16, dtype=jnp.float32).reshape(8, 2) + first, spread),
        "small": (jnp.int32(7), jnp.array([1.5, -0.0], jnp.bfloat16)),
    }


def shapes(of):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), of)


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    place = tmp_path_factory.mktemp("trees") / "saved"
    write_tree(place, tree(), {"step": 3})
    return place


def test_a_tree_comes_back_with_its_shardings(saved):
    about, digest = about_tree(saved)
    assert about == {"step": 3} and len(digest) == 64
    back = read_tree(saved, shapes(tree()))
    assert_same(back, tree())
    assert back["spread"].sharding == tree()["spread"].sharding
    assert names(saved.parent) == ["saved"]


def manifest(place):
    return json.loads((place / "saved.json").read_bytes())


@pytest.fixture(params=["to a bucket", "from a bucket"])
def copied(request, saved, tmp_path):
    """A tree that was written on one kind of place and copied to the other one."""
    pytest.importorskip("gcsfs")
    bucket = request.getfixturevalue("bucket")
    source, target = saved, bucket / "copy"
    if request.param == "from a bucket":
        source, target = bucket / "saved", tmp_path / "copy"
        write_tree(source, tree(), {"step": 3})
    for name in (*manifest(source)["files"], "saved.json"):
        copy = epath.Path(target / name)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes((source / name).read_bytes())
    return target


def test_a_tree_may_be_copied_between_a_disk_and_a_bucket(copied):
    assert about_tree(copied)[0] == {"step": 3}
    assert_same(read_tree(copied, shapes(tree())), tree())
    files = manifest(copied)["files"]
    data = copied / max(files, key=lambda name: files[name][0])
    data.write_bytes(data.read_bytes()[:-1] + b"?")
    with pytest.raises(Damaged, match="is not what was saved"):
        about_tree(copied)


def test_other_arrays_are_refused_by_path(saved):
    scalar, longer = jax.ShapeDtypeStruct((), jnp.int32), jax.ShapeDtypeStruct((3,), "bool")
    wrong = shapes(tree()) | {"small": (scalar, longer)}
    with pytest.raises(RunError, match=r"\['small'\]\[1\] is \['bfloat16', \[2\]\], not \['bool', \[3\]\]"):
        read_tree(saved, wrong)
    with pytest.raises(RunError, match=r"\['more'\] is None, not"):
        read_tree(saved, shapes(tree()) | {"more": jax.ShapeDtypeStruct((), jnp.int32)})


def flipped(data, place):
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


DAMAGES = {
    "empty": lambda data: b"",
    "half": lambda data: data[: len(data) // 2],
    "zeros": lambda data: bytes(len(data)),
    "longer": lambda data: data + b"x",
    "first byte": lambda data: flipped(data, 0),
    "middle byte": lambda data: flipped(data, len(data) // 2),
    "last byte": lambda data: flipped(data, len(data) - 1),
}


def test_every_damage_of_every_file_is_found(saved, tmp_path):
    files = sorted(path.relative_to(saved) for path in saved.rglob("*") if path.is_file())
    assert len(files) > 8
    copy = tmp_path / "copy"
    for file in files:
        data = (saved / file).read_bytes()
        for damage, change in {**DAMAGES, "missing": None, "a folder": None}.items():
            shutil.copytree(saved, copy)
            if change is not None:
                (copy / file).write_bytes(change(data))
            else:
                (copy / file).unlink()
                if damage == "a folder":
                    (copy / file).mkdir()
            with pytest.raises(Damaged) as raised:
                about_tree(copy)
            assert file.name in str(raised.value), damage
            shutil.rmtree(copy)


def test_what_was_said_about_a_tree_is_under_the_digest(saved, tmp_path):
    copy = shutil.copytree(saved, tmp_path / "copy")
    seen = json.loads((copy / "saved.json").read_text())
    seen["about"]["step"] = 4
    (copy / "saved.json").write_text(json.dumps(seen))
    with pytest.raises(Damaged, match=r"saved.json is not what was saved"):
        about_tree(copy)
    for text in ("", "[]", "5", "{}", "[" * 100_000, '{"digest": 1}', "\0"):
        (copy / "saved.json").write_text(text)
        with pytest.raises(Damaged, match=r"saved.json is not what was saved"):
            about_tree(copy)


def test_one_that_no_digest_was_saved_of_is_refused(tmp_path):
    (tmp_path / "old" / "state").mkdir(parents=True)
    with pytest.raises(Damaged, match=r"saved.json cannot be read \(No such file"):
        about_tree(tmp_path / "old")


def test_digests_are_of_the_values_and_words(tmp_path):
    digests = {write_tree(tmp_path / str(n), tree(n), {"step": 1}) for n in range(2)}
    digests.add(write_tree(tmp_path / "2", tree(0), {"step": 2}))
    assert len(digests) == 3


ODD = ["lr[1]", "back\\slash", "a*b?", "%20", "sp ace", "ünï", "{a}|#&;$()", "~", "a\nb"]


@pytest.mark.parametrize("name", ODD)
def test_folders_may_have_any_name(tmp_path, name):
    place = tmp_path / name / "0"
    write_tree(place, tree(), {})
    about_tree(place)
    assert_same(read_tree(place, shapes(tree())), tree())
    assert names(tmp_path) == [name] and names(place) == ["saved.json", "state"]


def test_a_place_that_is_taken(tmp_path):
    place = tmp_path / "place"
    first = write_tree(place, tree(1), {})
    assert write_tree(place, tree(2), {}, keep=True) != first
    assert about_tree(place)[1] == first  # a good one stays if that is asked for
    second = write_tree(place, tree(3), {})
    assert about_tree(place)[1] == second
    (place / "saved.json").write_text("damaged")
    third = write_tree(place, tree(4), {}, keep=True)
    assert about_tree(place)[1] == third
    assert names(tmp_path) == ["place"]


def test_two_that_write_the_same_at_once_leave_one(tmp_path):
    place, together, digests = tmp_path / "place", threading.Barrier(2), []

    def write():
        together.wait()
        digests.append(write_tree(place, tree(), {}, keep=True))

    both = [threading.Thread(target=write) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert about_tree(place)[1] in digests and len(digests) == 2
    assert_same(read_tree(place, shapes(tree())), tree())
    assert names(tmp_path) == ["place"]


def test_what_ended_processes_left_goes_and_what_a_living_one_writes_stays(tmp_path):
    for name in (".a.123.partial", ".b.123.partial", "c.partial", ".d"):
        (tmp_path / name / "state").mkdir(parents=True)
    (tmp_path / ".file.partial").write_bytes(b"")
    living = os.open(tmp_path / ".b.123.partial", os.O_RDONLY)
    fcntl.flock(living, fcntl.LOCK_EX)
    trees.clean(tmp_path)
    assert names(tmp_path) == [".b.123.partial", ".d", ".file.partial", "c.partial"]
    os.close(living)
    trees.clean(tmp_path)
    assert names(tmp_path) == [".d", ".file.partial", "c.partial"]


def test_no_room_is_told_before_anything_is_written(tmp_path):
    place = tmp_path / "place"
    first = write_tree(place, tree(), {})
    endless = {"a": np.broadcast_to(np.zeros(1), (2**50,))}
    with pytest.raises(OSError) as raised:
        write_tree(place, endless, {})
    assert raised.value.errno == errno.ENOSPC and raised.value.filename == str(place)
    assert about_tree(place)[1] == first and names(tmp_path) == ["place"]


def test_an_error_of_tensorstore_has_its_place_and_the_old_tree_stays(tmp_path, limited_file_size, capfd):
    place = tmp_path / "place"
    first = write_tree(place, tree(), {})
    with limited_file_size(20_000), pytest.raises(OSError) as raised:
        write_tree(place, {"a": np.random.default_rng(0).random(10_000)}, {})
    assert raised.value.errno == errno.EFBIG and raised.value.filename == str(place)
    assert about_tree(place)[1] == first and names(tmp_path) == ["place"]
    assert capfd.readouterr().err == ""


def test_a_folder_that_may_not_be_written_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError) as raised:
        write_tree(tmp_path / "file" / "place", tree(), {})
    assert str(tmp_path / "file") in raised.value.filename


def test_several_hosts_refuse_paths_that_orbax_reads_as_patterns(tmp_path):
    """On one host such a path works: it goes through /proc."""
    place = tmp_path / "a[1]" / "tree"
    write_tree(place, tree(), {})
    with pytest.raises(RunError, match=r"a\[1\].*: on several hosts no \[ \] may be in the path"):
        trees.check_no_pattern(place)
    trees.check_no_pattern(tmp_path)
