"""Rows as the originals have them, made here, become rows that the tasks read."""

import base64
import gzip
import json
import pickle
import subprocess
import sys
import zlib

import pytest

from atgrpo_jax.errors import RunError
from atgrpo_jax.prepare import convert
from atgrpo_jax.tasks import code_problems
from atgrpo_jax.tasks.math import Math

APPS = {
    "problem_id": 7, "question": "Add one.", "starter_code": "", "solutions": '["print(int(input()) + 1)"]',
    "input_output": '{"inputs": ["1\\n", "2\\n"], "outputs": ["2\\n", "3\\n"]}',
}  # fmt: skip
APPS_CALL = APPS | {
    "input_output": '{"fn_name": "inc", "inputs": [[1], [2]], "outputs": [[2], [3]]}',
    "solutions": '["def inc(x): return x + 1"]',
}
CONTEST = {
    "name": "1_A. Sum", "description": "Add.", "input_file": "",
    "public_tests": {"input": ["1 2\n"], "output": ["3\n"]},
    "private_tests": {"input": ["3 4\n"], "output": ["7\n"]},
    "solutions": {"language": [2, 3], "solution": ["int main() {}", "print(sum(map(int, input().split())))"]},
}  # fmt: skip
HIDDEN = json.dumps([{"input": "3", "output": "4", "testtype": "stdin"}])
LCB = {
    "question_id": "abc1", "question_title": "One more", "question_content": "Add one.", "starter_code": "",
    "public_test_cases": '[{"input": "1", "output": "2", "testtype": "stdin"}]', "metadata": "{}",
    "private_test_cases": base64.b64encode(zlib.compress(pickle.dumps(HIDDEN))).decode(),
}  # fmt: skip
LCB_CALL = LCB | {
    "public_test_cases": '[{"input": "[1, 2]\\n3", "output": "6", "testtype": "functional"}]',
    "private_test_cases": "[]", "metadata": '{"func_name": "total"}',
}  # fmt: skip


def written(tmp_path, source, *rows):
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return convert(source, [str(tmp_path / "in.jsonl")], str(tmp_path / "data" / "out.jsonl.gz"))


def problems(tmp_path):
    return code_problems.read(str(tmp_path / "data" / "out.jsonl.gz"))


def test_apps(tmp_path):
    count, left_out = written(tmp_path, "apps", APPS, APPS_CALL, APPS | {"input_output": ""})
    assert (count, left_out) == (2, {"no tests": 1})
    stdio, call = problems(tmp_path)
    assert (stdio.id, stdio.form, stdio.tests[1]) == ("apps-7", "stdio", ("2\n", "3\n"))
    assert stdio.solution == "print(int(input()) + 1)"
    assert (call.form, call.names, call.tests[0][0]) == ("call", ("inc",), "assert inc(*[1]) == 2")


def test_codecontests(tmp_path):
    written(tmp_path, "codecontests", CONTEST, CONTEST | {"input_file": "in.txt"})
    (problem,) = problems(tmp_path)
    assert problem.tests == (("1 2\n", "3\n"), ("3 4\n", "7\n"))
    assert problem.solution.startswith("print(sum")


def test_livecodebench(tmp_path):
    written(tmp_path, "livecodebench", LCB, LCB_CALL)
    stdio, call = problems(tmp_path)
    assert stdio.tests == (("1", "2"), ("3", "4"))
    assert (call.names, call.tests[0][0]) == (("Solution().total",), "assert candidate(*[[1, 2], 3]) == 6")


def test_private_tests_that_are_code_are_not_loaded(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "written"), "w"))

    evil = base64.b64encode(zlib.compress(pickle.dumps(Evil()))).decode()
    count, left_out = written(tmp_path, "livecodebench", LCB | {"private_test_cases": evil})
    assert count == 0 and list(left_out) == ["private tests are not plain data"]
    assert not (tmp_path / "written").exists()


def test_answers_and_olympiadbench(tmp_path):
    rows = {"problem": "1 + 1?", "answer": 2}, {"Question": "2?", "Answer": "$4$"}, {"problem": "a proof"}
    count, left_out = written(tmp_path, "answers", *rows)
    assert (count, left_out) == (2, {"no question or no answer": 1})
    task = Math(files={"train": str(tmp_path / "data" / "out.jsonl.gz")})
    assert {task.instance("train", i).answer for i in range(2)} == {"2", "4"}
    olympiad = {"id": 3, "question": "?", "final_answer": ["$\\frac{1}{2}$"], "image_1": None}
    rows = olympiad, olympiad | {"final_answer": None}, olympiad | {"final_answer": ["1", "2"]}
    count, left_out = written(tmp_path, "olympiadbench", *rows, olympiad | {"image_1": "x"})
    assert count == 1 and sorted(left_out) == ["has pictures", "no answer: a proof", "several answers"]


def test_other_kinds_of_file(tmp_path):
    (tmp_path / "a.csv").write_text("Problem,Answer\n1?,1\n")
    (tmp_path / "b.json").write_text(json.dumps([{"problem": "2?", "answer": "2"}]))
    with gzip.open(tmp_path / "c.jsonl.gz", "wt") as file:
        file.write(json.dumps({"problem": "3?", "answer": "3"}))
    files = [str(tmp_path / name) for name in ("a.csv", "b.json", "c.jsonl.gz")]
    assert convert("answers", files, str(tmp_path / "out.jsonl"))[0] == 3


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.jsonl", "{", r"a.jsonl: cannot be read"),
        ("a.jsonl", '{"problem_id": 1, "input_output": "{}x"}', r"a.jsonl, row 1: not a row of apps"),
        (
            "a.jsonl",
            '{"input_output": {"inputs": ["1"], "outputs": ["1"]}}',
            r"row 1: .*KeyError\('question'\)",
        ),
        ("a.parquet", "", r"a.parquet: (Parquet needs pyarrow|cannot be read)"),
    ],
)
def test_files_that_cannot_be_used_are_named(tmp_path, name, text, says):
    (tmp_path / name).write_text(text)
    with pytest.raises(RunError, match=says):
        convert("apps", [str(tmp_path / name)], str(tmp_path / "out.jsonl"))
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.slow
def test_the_command(tmp_path):
    def command(*args):
        words = [sys.executable, "-m", "atgrpo_jax.prepare", *args]
        return subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)

    (tmp_path / "in.jsonl").write_text(json.dumps(APPS) + "\n" + json.dumps(APPS | {"input_output": ""}))
    ended = command("--source=apps", "--out=out.jsonl.gz", "in.jsonl")
    assert (ended.returncode, ended.stdout) == (0, "1 problems in out.jsonl.gz\n")
    assert "left out: 1 (no tests)" in ended.stderr
    ended = command("--source=books", "--out=x", "in.jsonl")
    assert ended.returncode == 2 and "--source=books: expected one of apps, codecontests" in ended.stderr
