"""Rows as the originals have them, made here, become rows that the tasks read."""

import base64
import gzip
import json
import pickle
import subprocess
import sys
import zlib

import pytest

from atgrpo_jax.common.errors import RunError
from atgrpo_jax.tasks.code import code_problems
from atgrpo_jax.tasks.games.sokoban import Sokoban
from atgrpo_jax.tasks.math import math_problems
from atgrpo_jax.tasks.math.math import Math
from atgrpo_jax.tools import sources
from atgrpo_jax.tools.prepare import DAPO_AFTER, DAPO_BEFORE, convert
from atgrpo_jax.tools.sources import LONGEST

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
    (tmp_path / "in.jsonl").write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows))
    done = convert(source, [str(tmp_path / "in.jsonl")], str(tmp_path / "data" / "out.jsonl.gz"))
    return done.written, done.left_out


def problems(tmp_path):
    return code_problems.read(str(tmp_path / "data" / "out.jsonl.gz"))


def test_apps(tmp_path):
    count, left_out = written(tmp_path, "apps", APPS, APPS_CALL, APPS | {"input_output": ""})
    assert (count, left_out) == (2, {"no tests": 1})
    stdio, call = problems(tmp_path)
    assert (stdio.id, stdio.form, stdio.tests[1]) == ("apps-7", "stdio", ("2\n", "3\n"))
    assert stdio.solution == "print(int(input()) + 1)"
    assert (call.form, call.names, call.tests[0][0]) == ("call", ("inc",), "assert inc(1) in (2, [2])")


@pytest.mark.parametrize(
    ("result", "right", "wrong"),
    [
        ([[1]], ["[1]", "[[1]]"], ["1", "[2]"]),  # a list of one, or one around it
        ([1], ["1", "[1]"], ["[[1]]"]),
        ([1, 2], ["[1, 2]"], ["1", "[[1, 2]]"]),
        ("ab", ["'ab'"], ["'a'", "['ab']"]),
        ([], ["[]"], ["None"]),
    ],
)
def test_results_of_apps_in_a_list_of_one_or_bare(tmp_path, result, right, wrong):
    tests = {"fn_name": "f", "inputs": [["x", [1]]], "outputs": [result]}
    written(tmp_path, "apps", APPS | {"input_output": json.dumps(tests)})
    statement = problems(tmp_path)[0].tests[0][0]

    def passes(value):
        try:
            exec(statement, {"f": lambda text, numbers: eval(value)})
        except AssertionError:
            return False
        return True

    assert [value for value in (*right, *wrong) if passes(value)] == right


def test_results_too_long_to_print_are_left_out(tmp_path):
    huge = '{"fn_name": "f", "inputs": [[1]], "outputs": [' + "9" * 5000 + "]}"
    both = {"inputs": ["1", "2"], "outputs": ["1" * 20_000, "2" * (LONGEST + 1)]}
    only = {"inputs": ["2"], "outputs": ["2" * (LONGEST + 1)]}
    rows = [APPS | {"input_output": tests} for tests in (huge, json.dumps(both), json.dumps(only))]
    count, left_out = written(tmp_path, "apps", *rows, '{"answer": ' + "9" * 5000 + "}")
    assert count == 1 and left_out == {
        "an integer is longer than Python reads": 2,
        f"results are longer than {LONGEST} characters": 1,
    }
    assert problems(tmp_path)[0].tests == (("1", "1" * 20_000),)


def test_codecontests(tmp_path):
    written(tmp_path, "codecontests", CONTEST, CONTEST | {"input_file": "in.txt"})
    (problem,) = problems(tmp_path)
    assert problem.tests == (("1 2\n", "3\n"), ("3 4\n", "7\n"))
    assert problem.solution.startswith("print(sum")


def test_livecodebench(tmp_path):
    written(tmp_path, "livecodebench", LCB, LCB_CALL)
    stdio, call = problems(tmp_path)
    assert stdio.tests == (("1", "2"), ("3", "4"))
    assert (call.names, call.tests[0][0]) == (("Solution().total",), "assert candidate([1, 2], 3) == 6")


def reread(tmp_path):
    """The problems of a file that is written more than once."""
    with gzip.open(tmp_path / "data" / "out.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [code_problems.problem_of(json.loads(line)) for line in lines]


def test_rows_say_whose_rules_hold(tmp_path):
    written(tmp_path, "apps", APPS, APPS_CALL)
    assert [(p.judge, p.lists) for p in reread(tmp_path)] == [("apps", False), ("apps", True)]
    written(tmp_path, "codecontests", CONTEST)
    assert [p.judge for p in reread(tmp_path)] == ["codecontests"]
    written(tmp_path, "livecodebench", LCB, LCB_CALL)
    assert [(p.judge, p.lists) for p in reread(tmp_path)] == [
        ("livecodebench", False),
        ("livecodebench", True),
    ]


def test_a_solution_is_the_first_that_is_python(tmp_path):
    sources = ["print 1", "print(", "print(1)", "print(2)"]
    solutions = {"language": [3, 3, 3, 3, 1], "solution": [*sources, "puts 1"]}
    written(tmp_path, "codecontests", CONTEST | {"solutions": solutions})
    assert reread(tmp_path)[0].solution == "print(1)"
    written(
        tmp_path, "apps", APPS | {"solutions": json.dumps(sources)}, APPS_CALL | {"solutions": '["exec x"]'}
    )
    assert [p.solution for p in reread(tmp_path)] == ["print(1)", ""]


def test_numbers_that_json_made_texts_of(tmp_path):
    tests = {"fn_name": "f", "inputs": [[{"1": {"2": 3}}, {"4": 5}], [{"a": 1}]],
             "outputs": [{"6": 7}, [{"-8": 9}]]}  # fmt: skip
    written(tmp_path, "apps", APPS | {"input_output": json.dumps(tests)})
    assert [statement for statement, _ in reread(tmp_path)[0].tests] == [
        "assert f({1: {'2': 3}}, {'4': 5}) in ({6: 7}, [{6: 7}])",
        "assert f({'a': 1}) in ({-8: 9}, [{-8: 9}])",
    ]


def test_tests_as_lists_of_lines_and_separators_within_texts(tmp_path):
    lines = {"inputs": [["1", "2"], "3"], "outputs": [["4", 5], ["6"]]}
    nothing = {"inputs": ["1"], "outputs": [None]}
    rows = APPS | {"input_output": json.dumps(lines)}, APPS | {"input_output": json.dumps(nothing)}
    assert written(tmp_path, "apps", *rows) == (1, {"not a row of apps": 1})
    assert reread(tmp_path)[0].tests == (("1\n2", "4\n5"), ("3", "6"))
    case = {"input": '"a\u2028b"\n"\x85"', "output": '"\u2029"', "testtype": "functional"}
    written(tmp_path, "livecodebench", LCB_CALL | {"public_test_cases": json.dumps([case])})
    (statement, _) = reread(tmp_path)[0].tests[0]
    assert statement == "assert candidate('a\\u2028b', '\\x85') == '\\u2029'"


def test_private_tests_that_are_code_are_not_loaded(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "written"), "w"))

    evil = base64.b64encode(zlib.compress(pickle.dumps(Evil()))).decode()
    damaged = LCB | {"private_test_cases": LCB["private_test_cases"][:40]}
    rows = LCB, LCB | {"private_test_cases": evil}, damaged, LCB_CALL | {"metadata": "{}"}
    count, left_out = written(tmp_path, "livecodebench", *rows)
    assert count == 1 and left_out == {
        "private tests are not plain data": 1,
        "not a row of livecodebench": 1,
        "no name of the function": 1,
    }
    assert not (tmp_path / "written").exists()


def test_private_tests_that_inflate_to_more_than_a_bound_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "INFLATED", 1 << 20)
    case = {"input": "1", "output": "x" * (2 << 20), "testtype": "stdin"}
    bomb = base64.b64encode(zlib.compress(pickle.dumps(json.dumps([case])))).decode()
    assert len(bomb) < 10_000
    assert written(tmp_path, "livecodebench", LCB, LCB | {"private_test_cases": bomb}) == (
        1,
        {"private tests are larger than 1 MB": 1},
    )


def test_answers_and_olympiadbench(tmp_path):
    rows = {"problem": "1 + 1?", "answer": 2}, {"Question": "2?", "Answer": "$4$"}, {"problem": "a proof"}
    count, left_out = written(tmp_path, "answers", *rows)
    assert (count, left_out) == (2, {"no answer": 1})
    task = Math(files={"train": str(tmp_path / "data" / "out.jsonl.gz")})
    assert {task.instance("train", i).answer for i in range(2)} == {"2", "4"}
    several = ["1", "2"]
    rows = (
        {"problem": "?", "answer": ["3"]},
        {"problem": "?", "answer": several},
        {"problem": "?", "answer": {}},
    )
    count, left_out = written(tmp_path, "answers", *rows, {"problem": "?", "answer": "9" * 20_000})
    assert count == 1 and left_out == {
        "several answers": 1,
        "not a row of answers": 1,
        "the answer is longer than 200 characters": 1,
    }


@pytest.mark.parametrize(
    ("answer", "truth"),
    [
        ("She lays 3*4 = <<3*4=12>>12 eggs a day, for as long as she likes.\n#### 12", "12"),
        ("So it is 1,080.\n#### 1,080", "1,080"),
        ('["36"]', "36"),
        ('["\\\\frac{1}{2}"]', "\\frac{1}{2}"),
        ("[0, 1]", "[0, 1]"),
        ("$12", "12"),
        ("12 dollars", "12 dollars"),
        ("The answer is \\boxed{\\frac{3}{4}}.", "\\frac{3}{4}"),
        (2.5, "2.5"),
        ("\\text{no real solutions}", "\\text{no real solutions}"),
        ("42 or 43", "42 or 43"),
    ],
)
def test_answers_as_their_sets_write_them(tmp_path, answer, truth):
    assert written(tmp_path, "answers", {"problem": "?", "answer": answer}) == (1, {})
    assert math_problems.read(str(tmp_path / "data" / "out.jsonl.gz"))[0].answer == truth


def test_answers_that_nobody_can_give_are_left_out_by_name(tmp_path):
    given = {
        "a word for no answer": ["proof", "N/A", "nan", "None", float("nan"), "null", float("inf"), "Proof."],
        "several answers": ['["1", "2"]', ["1", "2"]],
        "no answer": ["", "####", None, []],
        "a sentence, of more than 8 words": ["She eats 3 of them and sells the others at 2 dollars each"],
        "an answer that cannot be read: numbers among words": ["42 (or 43)", "42 I believe"],
    }
    rows = [{"problem": f"{answer}?", "answer": answer} for answers in given.values() for answer in answers]
    count, left_out = written(tmp_path, "answers", {"problem": "?", "answer": "1"}, *rows)
    assert (count, left_out) == (1, {reason: len(answers) for reason, answers in given.items()})


def test_skywork_and_math_themselves(tmp_path):
    skywork = {"prompt": [{"role": "user", "content": "6 * 6?"}], "reward_model": {"ground_truth": '["36"]'}}
    solved = {"problem": "3 + 4?", "solution": "It is $\\boxed{7}$, not $\\boxed{8$.", "level": "Level 1"}
    assert written(tmp_path, "answers", skywork, solved, solved | {"solution": "Easy."}) == (
        2,
        {"no answer": 1},
    )
    read = math_problems.read(str(tmp_path / "data" / "out.jsonl.gz"))
    assert [problem.answer for problem in read] == ["36", "7"]


def test_olympiadbench(tmp_path):
    one = {"id": 3, "question": "?", "final_answer": ["$\\frac{1}{2}$"], "image_1": None}
    two = {
        "id": 4,
        "question": "What?",
        "final_answer": ["$1$,$2$"],
        "is_multiple_answer": True,
        "error": "1e-1",
    }
    rows = one, two, one | {"final_answer": None}, one | {"final_answer": ["1", "2"]}, one | {"image_1": "x"}
    count, left_out = written(tmp_path, "olympiadbench", *rows, two | {"answer_type": "Need_human_evaluate"})
    assert count == 2 and sorted(left_out) == [
        "an answer that people must judge", "has pictures", "no answer: a proof", "several answers",
    ]  # fmt: skip
    task = Math(files={"test": str(tmp_path / "data" / "out.jsonl.gz")})
    assert task.instance("test", 0).answer == "\\frac{1}{2}"
    found = task.instance("test", 1)
    assert (found.answer, found.multiple, found.tolerance) == ("1,2", True, 0.1)


def test_dapo(tmp_path):
    row = {
        "prompt": [{"role": "user", "content": f"{DAPO_BEFORE}\n\nWhat is $1 + 1$?\n\n{DAPO_AFTER}"}],
        "reward_model": {"ground_truth": "2", "style": "rule"},
        "extra_info": {"index": "9a9b"},
    }
    count, left_out = written(tmp_path, "answers", row, row | {"extra_info": {"index": "again"}})
    assert (count, left_out) == (1, {"the same as a row before": 1})
    problem = Math(files={"train": str(tmp_path / "data" / "out.jsonl.gz")}).instance("train", 0)
    assert (problem.id, problem.question, problem.answer) == ("9a9b", "What is $1 + 1$?", "2")


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
    assert (ended.returncode, ended.stdout) == (0, "1 problems in out.jsonl.gz\n")
    assert "left out: 1 (no tests): in.jsonl, row 2\n" in ended.stderr
    ended = command("--source=books", "--out=x", "in.jsonl")
    assert ended.returncode == 2 and "--source=books: expected one of apps, codecontests" in ended.stderr
