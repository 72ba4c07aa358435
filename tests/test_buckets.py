"""Objects, trees and folders in a scripted Cloud Storage, as real clients see it."""

import json
import os
import shutil
import threading
import time

import jax
import numpy as np
import pytest
import reference
from fake_gcs import Fault
from fakes import Longest
from test_trees import shapes, tree

from atgrpo_jax.arrays import trees
from atgrpo_jax.arrays.trees import Damaged
from atgrpo_jax.common import buckets
from atgrpo_jax.common.buckets import Changed
from atgrpo_jax.common.copies import copied
from atgrpo_jax.common.errors import ConfigError, RunError, Unreachable
from atgrpo_jax.common.files import append_json_line, folder_path, names_in, read_json_lines
from atgrpo_jax.run.experiment import Experiment
from atgrpo_jax.run.folder import RunFolder
from atgrpo_jax.run.gin_config import load
from atgrpo_jax.run.kept_files import keep
from atgrpo_jax.run.kept_source import make_importable
from atgrpo_jax.run.lease import NAME, Lease
from atgrpo_jax.tasks import data
from atgrpo_jax.tasks.data import read_rows
from atgrpo_jax.tokens.tokens import FolderTokenizer


def on_disk(store, path):
    """The file behind an object."""
    return store.store.folder / str(path).removeprefix("gs://")


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("gs://", "names no bucket"),
        ("gs:///runs", "names no bucket"),
        ("gs://Runs/x", "'Runs' cannot be one"),
        ("gs://runs-of-us", "names no folder in bucket runs-of-us"),
        ("gs://runs-of-us/a//b", "names no folder"),
        ("gs://runs-of-us/../b", "names no folder"),
        ("gs://runs-of-us/a[1]", "has a letter in it"),
    ],
)
def test_names_that_no_folder_can_have(url, why):
    with pytest.raises(ValueError, match=why):
        folder_path(url)


def test_what_is_missing_is_said(monkeypatch):
    monkeypatch.setattr(buckets, "_installed", lambda name: False)
    with pytest.raises(RunError, match=r"is in a bucket, which needs gcsfs: pip install 'atgrpo_jax\[gcs\]'"):
        RunFolder("gs://runs-of-us/a")


def test_a_write_may_ask_for_a_generation(bucket):
    first = buckets.write(bucket / "a", b"1", generation=0)
    with pytest.raises(Changed):
        buckets.write(bucket / "a", b"2", generation=0)
    second = buckets.write(bucket / "a", b"\r\n\x00", generation=first)
    assert buckets.read_version(bucket / "a") == (b"\r\n\x00", second)
    with pytest.raises(Changed):
        buckets.remove(bucket / "a", first)
    buckets.remove(bucket / "a", second)
    buckets.remove(bucket / "a")
    with pytest.raises(FileNotFoundError):
        buckets.read(bucket / "a")


def test_lines_of_several_writers_are_all_there(bucket):
    path = bucket / "lines.jsonl"

    def write(name):
        for number in range(5):
            append_json_line(path, {"by": name, "number": number})

    threads = [threading.Thread(target=write, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = [(line["by"], line["number"]) for line in read_json_lines(path)]
    assert sorted(lines) == [(name, number) for name in "abc" for number in range(5)]


def test_a_line_whose_answer_was_lost_is_there_once(store, bucket):
    """The client sends the request again, and the store then says that the generation is another."""
    append_json_line(bucket / "a", {"n": 1})
    store.faults.append(Fault("POST .*/o", 503, after=True))
    append_json_line(bucket / "a", {"n": 2})
    assert read_json_lines(bucket / "a") == [{"n": 1}, {"n": 2}]


def test_who_may_not_write_any_more_adds_nothing_to_what_others_have_written(bucket, monkeypatch):
    """It was asked before it began. Then its write took so long that another run took over."""
    path = bucket / "metrics.jsonl"
    append_json_line(path, {"step": 0})
    theirs = b'{"step": 0}\n{"step": 1, "by": "the other one"}\n'
    read, taken = buckets.read_version, []

    def slow(asked):
        found = read(asked)
        if not taken:
            taken.append(buckets.write(path, theirs))
        return found

    def check():
        if taken:
            raise RunError("taken over")

    monkeypatch.setattr(buckets, "read_version", slow)
    with pytest.raises(RunError, match="taken over"):
        append_json_line(path, {"step": 1}, check)
    assert buckets.read(path) == theirs


def test_a_renewal_whose_answer_was_lost_is_one(store, bucket):
    lease = Lease(bucket, renew_s=60)
    lease.take()
    before = lease._renewed
    store.faults.append(Fault("POST .*/o", 503, after=True))
    lease._renew()
    assert lease._renewed > before and lease._lost_to is None
    lease.check()
    lease.give_back()
    assert not names_in(bucket)


def test_a_move_that_takes_several_requests_is_made_whole(store, bucket, monkeypatch):
    monkeypatch.setattr(store.store, "long_rewrites", True)
    buckets.write(bucket / "draft" / "a", b"large")
    buckets.move(bucket / "draft", bucket / "5")
    assert buckets.read(bucket / "5" / "a") == b"large" and names_in(bucket) == {"5"}


def test_faults_of_the_store_name_the_path_and_what_to_do(store, bucket):
    store.faults.append(Fault("GET", 503))  # comes once, and is tried again
    assert names_in(bucket) == set()
    store.faults.append(Fault("POST", 403))
    with pytest.raises(
        RunError, match=rf"{bucket}/a: this machine's account may not do that.*Storage Object"
    ):
        buckets.write(bucket / "a", b"")
    with pytest.raises(RunError, match="gs://nobody-has-it/a: there is no such bucket"):
        buckets.write(folder_path("gs://nobody-has-it/a"), b"")
    store.faults.append(Fault("GET", 501))
    with pytest.raises(Unreachable, match=rf"{bucket}/a: the bucket cannot be reached") as raised:
        buckets.read(bucket / "a")
    assert raised.value.exit_code == 1  # a launcher starts the run again


def test_a_tree_comes_back_with_its_shardings(store, bucket):
    digest = trees.write_tree(bucket / "7", tree(), {"step": 3})
    assert trees.about_tree(bucket / "7") == ({"step": 3}, digest)
    back = trees.read_tree(bucket / "7", shapes(tree()))
    jax.tree.map(np.testing.assert_array_equal, back, tree())
    assert back["spread"].sharding == tree()["spread"].sharding
    trees.write_tree(bucket / "7", tree(1.0), {"step": 4})
    assert float(trees.read_tree(bucket / "7", shapes(tree()))["spread"][0, 0]) == 1.0
    states = {name for name in names_in(bucket / "7") if name != "saved.json"}
    assert len(states) == 1  # nothing of the first one is left
    trees.write_tree(bucket / "7", tree(2.0), {"step": 5}, keep=True)
    assert trees.about_tree(bucket / "7")[0] == {"step": 4} and names_in(bucket / "7") - states == {
        "saved.json"
    }
    trees.move_tree(bucket / "7", bucket / "7.damaged")
    assert trees.names_of_trees(bucket) == {"7.damaged"}
    assert trees.about_tree(bucket / "7.damaged")[0] == {"step": 4}
    trees.remove_tree(bucket / "7.damaged")
    assert buckets.found(bucket) == {}


def test_a_damaged_tree_is_refused_by_the_object(store, bucket):
    trees.write_tree(bucket / "7", tree(), {})
    for name in sorted(buckets.found(bucket / "7")):
        file = on_disk(store, bucket / "7" / name)
        whole = file.read_bytes()
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(Damaged, match=f"/7/{name} is not what was saved"):
            trees.about_tree(bucket / "7")
        file.write_bytes(whole)
    trees.about_tree(bucket / "7")
    file.unlink()
    with pytest.raises(Damaged):
        trees.about_tree(bucket / "7")


def test_half_a_tree_is_none_and_goes_after_a_day(store, bucket):
    trees.write_tree(bucket / "7", tree(), {})
    buckets.remove(bucket / "7" / "saved.json")
    assert trees.names_of_trees(bucket) == set() and not trees.is_tree(bucket / "7")
    trees.clean(bucket)
    assert names_in(bucket) == {"7"}  # somebody may be writing it
    for name in buckets.found(bucket / "7"):
        long_ago = time.time() - 25 * 3600
        os.utime(on_disk(store, bucket / "7" / name), (long_ago, long_ago))
    trees.clean(bucket)
    assert names_in(bucket) == set()


def test_a_save_that_fails_leaves_what_was_there(store, bucket):
    trees.write_tree(bucket / "7", tree(), {"step": 3})
    store.faults.append(Fault("POST .*manifest.ocdbt", 403))
    with pytest.raises(Unreachable, match=f"{bucket}/7 cannot be written"):
        trees.write_tree(bucket / "7", tree(1.0), {"step": 4})
    assert trees.about_tree(bucket / "7")[0] == {"step": 3}
    trees.write_tree(bucket / "7", tree(1.0), {"step": 4})
    assert len(names_in(bucket / "7")) == 2  # also what Orbax's threads wrote after the error is gone


QUICK = {"renew_s": 0.1, "sure_s": 0.4, "void_s": 0.8}


def held_by(bucket, **said):
    """A lease that somebody wrote once."""
    about = {"host": "tpu-7", "pid": 12, "since": "yesterday", "place": "elsewhere", "token": "t"} | said
    buckets.write(bucket / NAME, json.dumps(about).encode())


def test_a_second_run_is_refused_by_name_while_the_first_renews(bucket):
    first = Lease(bucket, **QUICK)
    first.take()
    with pytest.raises(RunError, match=rf"process {os.getpid()} on .* is training in {bucket}; wait for it"):
        Lease(bucket, **QUICK).take()
    first.check()
    first.give_back()
    assert names_in(bucket) == set()


def test_a_lease_that_nobody_renews_becomes_void(bucket, capsys):
    held_by(bucket)
    began = time.monotonic()
    second = Lease(bucket, **QUICK)
    second.take()
    assert 0.8 < time.monotonic() - began < 5
    assert "is held by process 12 on tpu-7 (since yesterday); waiting up to 1 s" in capsys.readouterr().err
    second.give_back()


def test_the_lease_of_a_process_of_this_machine_that_ended_is_void_at_once(bucket):
    held_by(bucket, place=Lease(bucket)._record["place"], pid=2**22 + 1)
    lease = Lease(bucket)
    lease.take()
    lease.give_back()


def test_who_has_lost_the_lease_writes_nothing_more(bucket):
    folder = RunFolder(bucket)
    folder._lease = Lease(bucket, renew_s=60, sure_s=0.2, void_s=60)
    folder._lease.take()
    folder.check_ours()
    held_by(bucket)
    time.sleep(0.3)
    for write in (folder.check_ours, lambda: folder.rewind(0)):
        with pytest.raises(RunError, match="process 12 on tpu-7 .* has taken this run over"):
            write()
    folder._lease._ended.set()
    folder.unlock()
    assert names_in(bucket) == {NAME}  # that of the other one stays


def test_a_folder_of_somebody_else_is_refused(bucket):
    buckets.write(bucket / "letter.txt", b"dear")
    with pytest.raises(RunError, match="is not a run folder"):
        RunFolder(bucket).exists()


def test_a_folder_is_copied_and_only_what_changed_is_copied_again(store, bucket, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("config.json", "model.safetensors", "model.bin", "onnx/config.json"):
        buckets.write(bucket / name, name.encode())
    local = copied(bucket)
    assert local.is_relative_to(tmp_path)
    assert {p.name for p in local.iterdir() if p.name[0] != "."} == {"config.json", "model.safetensors"}
    buckets.write(bucket / "config.json", b"new")
    buckets.write(bucket / "template.jinja", b"{}")
    buckets.remove(bucket / "model.safetensors")
    store.requests.clear()
    assert copied(bucket) == local
    assert {p.name: p.read_bytes() for p in local.iterdir() if p.name[0] != "."} == {
        "config.json": b"new",
        "template.jinja": b"{}",
    }
    assert sum("alt=media" in request for request in store.requests) == 2
    with pytest.raises(RunError, match="there is no such folder in the bucket"):
        copied(bucket / "other")


def test_a_model_in_a_bucket_is_the_one_that_was_put_there(store, bucket, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    local = tmp_path / "model"
    reference.make(local, "Qwen3", {"num_key_value_heads": 2})
    reference.make_tokenizer(local)
    shutil.copytree(local, on_disk(store, bucket))
    model, params = reference.ours(bucket)
    theirs, expected = reference.ours(local)
    assert model.architecture == theirs.architecture
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    tokenizer = FolderTokenizer(str(bucket))
    assert tokenizer.folder == str(bucket)  # so a run says where its model came from, on any machine
    assert tokenizer.digest() == FolderTokenizer(str(local)).digest()
    with pytest.raises(RunError, match="other: there is no such folder in the bucket"):
        FolderTokenizer(f"{bucket}/other")


def test_a_gin_file_is_read_from_a_bucket(bucket):
    buckets.write(bucket / "mine.gin", b'include "smoke.gin"\nexperiment.Experiment.steps = 3\n')
    assert load(f"{bucket}/mine.gin") == load("smoke.gin", ["experiment.Experiment.steps = 3"])
    with pytest.raises(ConfigError, match="other.gin cannot be read: .*No such object"):
        load(f"{bucket}/other.gin")
    with pytest.raises(ConfigError, match="names no folder in bucket a-bucket"):
        load("gs://a-bucket")


def test_problem_files_are_read_from_a_bucket(bucket, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    buckets.write(bucket / "a.jsonl", b'{"question": "1 + 1?"}\n')
    buckets.write(bucket / "b.jsonl", b'{"question": "2 + 2?"}\n')
    for name in ("a", "b", "a"):
        ((number, row),) = read_rows(f"{bucket}/{name}.jsonl", {"question": str})
        assert number == 1 and row["question"][0] == {"a": "1", "b": "2"}[name]
    assert data.absolute({"test": f"{bucket}/a.jsonl"}) == {"test": f"{bucket}/a.jsonl"}
    with pytest.raises(RunError, match="c.jsonl: there is no such file in the bucket"):
        list(read_rows(f"{bucket}/c.jsonl", {}))


def test_files_of_a_bucket_are_kept_by_a_run(store, bucket, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    reference.make_tokenizer(tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").unlink(missing_ok=True)
    shutil.copytree(tmp_path / "model", on_disk(store, bucket / "model"))
    buckets.write(bucket / "mine.jinja", b"{{ messages[0].content }}<|end|>")
    tokenizer = FolderTokenizer(f"{bucket}/model", chat_template=f"{bucket}/mine.jinja")
    assert tokenizer.chat_template == f"{bucket}/mine.jinja"
    here = Experiment(Longest(), tokenizer=tokenizer)
    kept = keep(here, tmp_path / "kept")
    assert kept.tokenizer.chat_template == str(tmp_path / "kept" / "mine.jinja")
    assert kept.tokenizer.digest() == tokenizer.digest() and kept.identity() == here.identity()


def test_source_that_is_kept_in_a_bucket_is_imported(bucket, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("sys.path", ["/nowhere"])
    make_importable(bucket / "code")  # there is none
    buckets.write(bucket / "code" / "kept_in_a_bucket.py", b"ANSWER = 42\n")
    make_importable(bucket / "code")
    import kept_in_a_bucket

    assert kept_in_a_bucket.ANSWER == 42
