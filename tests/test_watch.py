"""The commands that look at runs, on disks and in buckets: runs, compare, report; also a watch."""

import base64
import gzip
import json
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from fake_gcs import Fault
from test_cli import COMMANDS
from test_compare import made

from atgrpo_jax.common.files import append_json_line, folder_path, is_file, read_file
from atgrpo_jax.run.folder import RunFolder
from atgrpo_jax.viewing.comparing import grouped, table
from atgrpo_jax.viewing.folders import outline, runs_in, state
from atgrpo_jax.viewing.page import Writer, watch

pytestmark = pytest.mark.thorough


@pytest.fixture(params=["disk", "bucket"])
def root(request, tmp_path):
    """A folder for run folders."""
    if request.param == "disk":
        return tmp_path / "runs"
    pytest.importorskip("gcsfs")
    return request.getfixturevalue("bucket") / "runs"


def begin(command, *args):
    words = [sys.executable, "-m", f"atgrpo_jax.{command}", *map(str, args)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(command, *args):
    process = begin(command, *args)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out


def contents(path):
    """What a page says of its run."""
    packed = re.search(r'id="contents">(.*?)<', read_file(path).decode())[1]
    return json.loads(gzip.decompress(base64.b64decode(packed)))


def until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_runs_are_listed_compared_and_shown(root, tmp_path):
    one = made(root / "one", [True, False])
    made(root / "two", [True, True], rate=2e-3)
    assert [run.path.name for run in runs_in(root)] == ["one", "two"] and state(outline(one)) == "ended"
    assert "50.0%" in table(grouped([outline(folder) for folder in runs_in(root)])).splitlines()[1]
    lines = ended("runs", root).splitlines()
    assert [re.split(" {2,}", line)[:4] for line in lines[1:]] == [
        ["one", "ended", "2/2", "50.0% (step 2)"], ["two", "ended", "2/2", "100.0% (step 2)"],
    ]  # fmt: skip
    said = ended("compare", root / "one", root / "two", "--step=2", f"--out={tmp_path / 'a.png'}")
    assert "B - A: +50.0%" in said and (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert "episodes of 1 of 1 file" in ended("report", f"--run_dir={root / 'one'}", "--step=2")
    assert [file["name"] for file in contents(one.report)["files"]] == ["test-2"]
    assert "test, step 2, instance 1" in ended("report", f"--run_dir={root / 'one'}", "--text=2/test/1")


def test_a_watch_ends_with_the_run(root):
    folder = made(root / "one", [True, False], steps=1)
    page = folder.path / "watch.html"
    folder.lock()
    process = begin("report", f"--run_dir={folder.path}", "--watch", "--every=1")
    until(lambda: is_file(page))
    assert contents(page)["reload_s"] == 1.0 and contents(page)["steps"] == [0, 1]
    append_json_line(folder.metrics, {"step": 2, "rollout/success": 0.5})
    until(lambda: contents(page)["steps"] == [0, 1, 2])
    name = folder.write_evaluation("test", read_file(folder.episodes_of(2, "test")))
    record = {"step": 2, "split": "test", "temperature": 0.5, "episodes": f"evaluations/{name}"}
    append_json_line(folder.evaluations, record)
    title = "test, step 2, evaluation 1 at temperature 0.5"
    until(lambda: title in [file["title"] for file in contents(page)["files"]])
    folder.unlock()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and out.splitlines()[-1].endswith("this is the last page"), err
    assert contents(page)["reload_s"] is None


def test_ctrl_c_ends_a_watch_and_leaves_a_page_that_loads_itself_no_more(tmp_path):
    folder = made(tmp_path / "one", [True, False])
    folder.lock()
    out = folder_path(tmp_path / "page.html")
    process = begin("report", f"--run_dir={folder.path}", "--watch", f"--out={out}")
    until(lambda: is_file(out))
    assert contents(out)["reload_s"] == 30.0
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err.strip() == f"{out} stays as it is; the run goes on"
    assert contents(out)["reload_s"] is None
    folder.unlock()


def test_a_watch_outlives_a_bucket_that_does_not_answer(store, bucket, capsys):
    folder = made(bucket / "one", [True, False])
    folder.lock()
    writer = Writer(folder, folder.path / "page.html")
    store.faults.append(Fault("GET .*lease", 501))
    end = threading.Timer(1.5, folder.unlock)
    end.start()
    watch(writer, 1.0)
    end.join()
    said = capsys.readouterr().out.splitlines()
    assert "the bucket cannot be reached" in said[0] and said[0].endswith("tried again in 1 s")
    assert said[1].endswith("page.html: step 2") and said[-1].endswith("this is the last page")


def test_the_commands_in_the_docs_have_flags_that_there_are():
    text = (Path(__file__).parents[1] / "docs" / "report.md").read_text()
    lines = re.findall(r"^    python -m atgrpo_jax\.(\w+) (.*)$", text, re.MULTILINE)
    assert len(lines) > 8
    for command, rest in lines:
        assert set(re.findall(r"--(\w+)", rest)) <= COMMANDS[command]
    for picture in re.findall(r"\((\S+\.png)\)", text):
        path = Path(__file__).parents[1] / "docs" / picture
        assert path.stat().st_size < 120_000


def test_files_that_are_shown_again_are_read_once(tmp_path, monkeypatch):
    folder = made(tmp_path / "one", [True, False])
    writer = Writer(folder, tmp_path / "page.html")
    writer.write()
    folder.write_episodes(3, read_file(folder.episodes_of(2, "test")))
    read = []
    monkeypatch.setattr(RunFolder, "read_episodes", lambda *args: read.append(args[1:]) or [])
    assert writer.write() == ["train-3", "test-2"] and read == [(3, "train")]
