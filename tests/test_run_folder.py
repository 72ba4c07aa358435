import errno
import os

import numpy as np
import pytest
from fakes import group

from atgrpo_jax.errors import RunError
from atgrpo_jax.groups import Credited
from atgrpo_jax.run_folder import RunFolder, write_atomically
from atgrpo_jax.tokens import TinyTokenizer


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.lock()
    return folder


def records(folder, *steps):
    folder.metrics.write_text("".join(f'{{"step": {s}, "x": 1.5}}\n' for s in steps))


def test_what_is_not_a_run_folder_is_refused(tmp_path):
    assert not RunFolder(tmp_path / "new").exists()
    assert not RunFolder(tmp_path).exists()
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(RunError, match="is not a run folder .* --run_dir"):
        RunFolder(tmp_path).exists()
    with pytest.raises(RunError, match="is not a run folder"):
        RunFolder(tmp_path / "letter.txt").exists()


def test_two_processes_cannot_train_in_one_folder(folder):
    with pytest.raises(RunError, match="another process is training in"):
        RunFolder(folder.path).lock()


def test_a_cut_last_line_is_left_out_but_another_bad_line_is_an_error(folder):
    records(folder, 0, 1)
    with open(folder.metrics, "a") as file:
        file.write('{"step": 2, "x"')
    assert [r["step"] for r in folder.read_metrics()] == [0, 1]
    folder.metrics.write_text('{"step": 0}\nnonsense\n{"step": 2}\n')
    with pytest.raises(RunError, match=r"metrics.jsonl, line 2: not JSON"):
        folder.read_metrics()


def test_rewind_forgets_what_comes_after(folder):
    records(folder, 0, 1, 2, 3)
    before = folder.metrics.read_text().splitlines(keepends=True)
    item = Credited(group(1.0, 2.0), np.array([-1, 1], np.float32), np.ones(2, bool))
    for step in (1, 2, 3):
        folder.write_episodes(step, [item], TinyTokenizer())
    (folder.episodes / ".step_000004.jsonl.gz.partial").write_bytes(b"cut short")
    folder.rewind(2)
    assert folder.metrics.read_text() == "".join(before[:3])
    assert sorted(p.name for p in folder.episodes.iterdir()) == [
        "step_000001.jsonl.gz",
        "step_000002.jsonl.gz",
    ]


def test_episode_records(folder):
    item = Credited(group(1.0, None, chosen=0), np.array([0.5, 0.0], np.float32), np.array([True, False]))
    folder.write_episodes(1, [item], TinyTokenizer())
    (record,) = folder.read_episodes(1)
    assert (record["role"], record["instance"], record["turn"], record["version"]) == ("a", 3, 0, 0)
    assert record["prompt_ids"] == [5, 6, 7]
    assert record["executed"] == 0
    first, second = record["candidates"]
    assert (first["local"], first["parts"], first["advantage"]) == (1.0, {"number": 1.0}, 0.5)
    assert (first["tokens"], first["logprobs"], first["trained"]) == ([1, 2], [-0.5, -0.6], True)
    assert (second["team"], second["local"], second["trained"]) == (None, None, False)


def test_the_same_episodes_are_the_same_bytes(folder, tmp_path):
    item = Credited(group(1.0, 2.0), np.array([-1, 1], np.float32), np.ones(2, bool))
    folder.write_episodes(1, [item], TinyTokenizer())
    other = RunFolder(tmp_path / "other")
    other.lock()
    other.write_episodes(1, [item], TinyTokenizer())
    one, two = (f.episodes / "step_000001.jsonl.gz" for f in (folder, other))
    assert one.read_bytes() == two.read_bytes()


def test_a_full_disk_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    os.symlink("/dev/full", tmp_path / ".file.partial")
    with pytest.raises(OSError) as raised:
        write_atomically(path, b"new")
    assert raised.value.errno == errno.ENOSPC
    assert path.read_bytes() == b"old"
    assert not (tmp_path / ".file.partial").exists()
