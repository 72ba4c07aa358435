"""Files that ``prepare`` reads and writes: levels, other kinds, odd rows, damage, and the command."""

import gzip
import json
import subprocess
import sys

import pytest
from shared_prepare import APPS, APPS_CALL, CONTEST, LCB, LCB_CALL, written

from atgrpo_jax.common.errors import RunError
from atgrpo_jax.tasks.code import code_problems
from atgrpo_jax.tasks.games.sokoban import Sokoban
from atgrpo_jax.tasks.math import math_problems
from atgrpo_jax.tools.downloads import rows_in
from atgrpo_jax.tools.prepare import convert

LEVEL = ["##########", *["#        #"] * 2, "# @$  .  #", "#  $  .  #", "#  $  .  #", "#  $  .  #",
         *["#        #"] * 2, "##########"]  # fmt: skip


def test_boxoban(tmp_path):
    short, odd = LEVEL[1:], [line.replace("@", "x") for line in LEVEL]
    nobody = [line.replace("@", " ") for line in LEVEL]
    levels = enumerate((LEVEL, short, odd, nobody, LEVEL[::-1]))
    (tmp_path / "000.txt").write_text("\n".join(f"; {n}\n" + "\n".join(rows) + "\n" for n, rows in levels))
    out = str(tmp_path / "out.jsonl.gz")
    done = convert("boxoban", [str(tmp_path / "000.txt")], out)
    assert (done.written, done.left_out) == (2, {"not a row of boxoban": 3})
    task = Sokoban(levels={"train": out}, view="symbols")
    assert {task.instance("train", i).rows for i in range(2)} == {tuple(LEVEL), tuple(LEVEL[::-1])}
    with gzip.open(out, "rt") as lines:
        assert [json.loads(line)["id"] for line in lines] == ["boxoban-000-0", "boxoban-000-4"]


def test_other_kinds_of_file(tmp_path):
    (tmp_path / "a.csv").write_text("\ufeffProblem,Answer\n1?,1\n" + "x" * 200_000 + ",2\n", encoding="utf-8")
    (tmp_path / "b.json").write_text(json.dumps([{"problem": "2?", "answer": "2"}]))
    with gzip.open(tmp_path / "c.jsonl.gz", "wt") as file:
        file.write(json.dumps({"problem": "3?", "answer": "3"}))
    files = [str(tmp_path / name) for name in ("a.csv", "b.json", "c.jsonl.gz")]
    assert convert("answers", files, str(tmp_path / "out.jsonl")).written == 4


def test_the_rows_of_an_object_are_its_values(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text('{"first": {"question": "1"}, "second": {"question": "2"}}')
    assert list(rows_in(path)) == [{"question": "1"}, {"question": "2"}]


def test_bad_rows_are_left_out_and_the_first_are_named(tmp_path):
    rows = (
        APPS, "{", "[]", APPS | {"question": 5}, APPS | {"input_output": "{}x"}, 
        {"input_output": APPS["input_output"]},
        APPS | {"input_output": {"inputs": 1}}, APPS | {"solutions": "[[1]]"}, APPS | {"question": "\ud800"},
        APPS | {"input_output": {"inputs": ["1"], "outputs": []}},
    )  # fmt: skip
    (tmp_path / "a.jsonl").write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows))
    done = convert("apps", [str(tmp_path / "a.jsonl")], str(tmp_path / "out.jsonl"))
    assert (done.written, done.left_out) == (1, {"not a row of apps": 8, "not as many results as inputs": 1})
    first, second, third = done.places["not a row of apps"]
    assert "a.jsonl, row 2 (malformed JSON: " in first and "row 3 (no JSON object)" in second
    assert "row 4 (the question or the solution is no text)" in third
    assert len(code_problems.read(str(tmp_path / "out.jsonl"))) == 1


ODD = (
    None, 0, -1.5, float("nan"), True, "", "x", "[", "null", "[[1]]", [], [[]], [None], ["x"], {}, {"a": 1},
    "9" * 5000, "[" * 50_000, "\ud800", {"inputs": "12", "outputs": "34"}, {"input": [1], "output": [None]},
    {"fn_name": "f", "inputs": [3], "outputs": [4]}, {"ground_truth": {}}, [{"content": 5}],
)  # fmt: skip


@pytest.mark.parametrize(
    ("source", "row"),
    [
        ("apps", APPS), ("apps", APPS_CALL), ("codecontests", CONTEST), ("livecodebench", LCB),
        ("livecodebench", LCB_CALL), ("answers", {"problem": "What?", "answer": "2"}),
        ("answers", {"prompt": [{"content": "?"}], "reward_model": {"ground_truth": "2"}, "extra_info": {}}),
        ("olympiadbench", {"id": 3, "question": "?", "final_answer": ["1"], "error": "1e-1", "image_1": ""}),
    ],
)  # fmt: skip
def test_no_row_aborts_a_conversion_and_what_is_written_is_read(tmp_path, source, row):
    rows = [row | {name: odd} for name in row for odd in ODD]
    count, left_out = written(tmp_path, source, row, *rows)
    assert count + sum(left_out.values()) == len(rows) + 1 and left_out
    read = math_problems.read if source in ("answers", "olympiadbench") else code_problems.read
    assert len(read(str(tmp_path / "data" / "out.jsonl.gz"))) == count


WHOLE = gzip.compress(
    json.dumps(APPS).encode() * 50, mtime=0
)  # the same in all processes: it is in tests' names


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", b"{", r"a.jsonl: no row of apps in it \(row 1: malformed JSON"),
        ("a.jsonl", b'{"problem": "?", "answer": 1}', r"no row of apps in it \(row 1: no field"),
        ("a.jsonl", b"\n<!DOCTYPE html>\n<html>", r"a.jsonl: it is a web page"),
        ("a.jsonl.gz", b"<html>", r"a.jsonl.gz: it is a web page"),
        (
            "a.parquet",
            b"version https://git-lfs.github.com/spec/v1\noid",
            r"a.parquet: it is Git LFS's pointer",
        ),
        ("a.parquet", b"", r"a.parquet: it is empty"),
        ("a.parquet", b"PAR1", r"a.parquet: (Parquet needs pyarrow|cannot be read)"),
        ("a.jsonl", b"\xff\xfe{", r"a.jsonl: cannot be read \('utf-8' codec"),
        ("a.jsonl.gz", WHOLE[:-20], r"a.jsonl.gz: cannot be read \(Compressed file ended"),
        ("a.jsonl.gz", WHOLE[:15] + b"\xff" * 20, r"a.jsonl.gz: cannot be read \(Error -3"),
        ("a.jsonl.gz", b"{}", r"a.jsonl.gz: cannot be read \(Not a gzipped file"),
        ("a.json", b"[1, 2", r"a.json: cannot be read \(Expecting"),
        ("a.json", b"3", r"a.json: cannot be read \(neither a list nor an object"),
        ("a.json", b"{}", r"a.json: no row of apps in it \(there is none at all"),
        ("a.csv", b'a,b\n"1' + b"x" * 9, r"a.csv: no row of apps in it \(row 1: no field"),
        ("a.jsonl", json.dumps(APPS | {"input_output": ""}).encode(), "no row could be used: 2 no tests"),
    ],
)
def test_files_that_cannot_be_used_are_named_and_replace_nothing(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    (tmp_path / "good.jsonl").write_text(
        json.dumps(APPS | {"input_output": ""} if "no tests" in says else APPS)
    )
    (tmp_path / "out.jsonl").write_text("before")
    with pytest.raises(RunError, match=says):
        convert("apps", [str(tmp_path / f) for f in ("good.jsonl", name)], str(tmp_path / "out.jsonl"))
    assert (tmp_path / "out.jsonl").read_text() == "before"
    assert not (tmp_path / "out.jsonl.partial").exists()


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(RunError, match="nowhere.jsonl: no such file"):
        convert("apps", [str(tmp_path / "nowhere.jsonl")], str(tmp_path / "out.jsonl"))


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    rows = [{"problem": f"{i}?", "answer": str(i), "extra_info": {"index": i}} for i in range(3000)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    assert convert("answers", [str(path)], str(tmp_path / "out.jsonl")).written == 3000
    whole = path.read_bytes()
    for damaged in (whole[:4], whole[: len(whole) // 2], whole[:4] + bytes(len(whole) - 104) + whole[-100:]):
        path.write_bytes(damaged)
        with pytest.raises(RunError, match="a.parquet: cannot be read"):
            convert("answers", [str(path)], str(tmp_path / "out.jsonl"))


@pytest.mark.slow
def test_the_command(tmp_path):
    def command(*args):
        words = [sys.executable, "-m", "atgrpo_jax.tools.prepare", *args]
        return subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)

    (tmp_path / "in.jsonl").write_text(json.dumps(APPS) + "\n" + json.dumps(APPS | {"input_output": ""}))
    ended = command("--source=apps", "--out=out.jsonl.gz", "in.jsonl")
    assert (ended.returncode, ended.stdout) == (0, "1 problem in out.jsonl.gz\n")
    assert "left out: 1 (no tests): in.jsonl, row 2\n" in ended.stderr
    ended = command("--source=books", "--out=x", "in.jsonl")
    assert ended.returncode == 2 and "--source=books: expected one of apps, codecontests" in ended.stderr
