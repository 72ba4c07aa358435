import dataclasses
import itertools
import json
import os
import random
from pathlib import Path

import pytest

from atgrpo_jax.common.types import Outcome
from atgrpo_jax.tasks.games.sudoku import State, Sudoku, fill
from atgrpo_jax.tasks.games.sudoku_grids import TooHard, candidates, solutions
from atgrpo_jax.tasks.games.sudoku_puzzles import Instance, read_puzzles
from atgrpo_jax.tasks.workflow import Workflow

TASK = Sudoku()
# 1 2 | 3 .      one solution; empty: 03 11 22 30
# 3 . | 1 2
# ----+----
# 2 1 | . 3
# . 3 | 2 1
SOLUTION = (1, 2, 3, 4, 3, 4, 1, 2, 2, 1, 4, 3, 4, 3, 2, 1)
PUZZLE = (1, 2, 3, 0, 3, 0, 1, 2, 2, 1, 0, 3, 0, 3, 2, 1)
INSTANCE = Instance(PUZZLE, SOLUTION)
START = State(INSTANCE, PUZZLE)


def full_grids():
    """All of 4x4, by trying every order of the digits in every row."""
    for rows in itertools.product(itertools.permutations(range(1, 5)), repeat=4):
        columns = zip(*rows, strict=True)
        boxes = [rows[r][c : c + 2] + rows[r + 1][c : c + 2] for r in (0, 2) for c in (0, 2)]
        if all(len(set(part)) == 4 for part in (*columns, *boxes)):
            yield tuple(itertools.chain(*rows))


@pytest.mark.parametrize("task", [TASK, Sudoku(least_empty=10, most_empty=12)])
def test_every_puzzle_of_4x4_has_one_solution_and_it_is_the_one_we_know(task):
    grids = list(full_grids())
    assert len(grids) == 288
    for index in range(1000):
        instance = task.instance("train", index)
        fitting = [
            grid
            for grid in grids
            if all(given in (0, digit) for given, digit in zip(instance.puzzle, grid, strict=True))
        ]
        assert fitting == [instance.solution]


@pytest.mark.parametrize("task", [TASK, Sudoku(size=9, least_empty=30, most_empty=50)])
def test_the_solver_finds_the_same(task):
    for index in range(1000 if task.size == 4 else 100):
        instance = task.instance("train", index)
        assert list(solutions(instance.puzzle)) == [instance.solution]
        assert task.least_empty <= instance.puzzle.count(0) <= task.most_empty


def test_splits_share_no_puzzle_and_instances_are_pure():
    drawn = {s: [TASK.instance(s, i) for i in range(300)] for s in ("train", "validation", "test")}
    assert drawn["train"] == [Sudoku().instance("train", i) for i in range(300)]
    for one, other in itertools.combinations(drawn.values(), 2):
        assert not set(one) & set(other)
    with pytest.raises(ValueError, match="split 'dev'"):
        TASK.instance("dev", 0)


@pytest.mark.parametrize(
    ("text", "fills"),
    [
        ("[ 034 114]", [(0, 3, 4), (1, 1, 4)]),
        ("[034, 114]", [(0, 3, 4), (1, 1, 4)]),
        ("['034', \"114\"]", [(0, 3, 4), (1, 1, 4)]),
        ("[[0, 3, 4], [1,1,4]]", [(0, 3, 4), (1, 1, 4)]),
        ("[[0, 3, 4]]", [(0, 3, 4)]),
        ("[0, 3, 4]", [(0, 3, 4)]),
        ("first [034]\n#### [[1, 1, 4]]\nthat is all", [(1, 1, 4)]),
        ("[(0, 3, 4)]", [(0, 3, 4)]),
        ("[[1,2,3,4],[3,4,1,2],[2,1,4,3],[4,3,2,1]]", [(0, 3, 4), (1, 1, 4), (2, 2, 4), (3, 0, 4)]),
        ("[1234 3412 2143 4321]", [(0, 3, 4), (1, 1, 4), (2, 2, 4), (3, 0, 4)]),
        ("[03]", [(-1, -1, -1)]),
        ("[]", []),
        ("034", []),
        ("[034", []),
    ],
)
def test_read(text, fills):
    assert TASK.read(START, text) == fills


def test_given_digits_stay_and_rules_are_kept():
    # A given cell; a digit that the row has; outside; no digit; then a right one, and one over it.
    filled = fill(START, [(0, 0, 4), (0, 3, 1), (4, 0, 1), (0, 3, 9), (0, 3, 4), (1, 1, 4)])
    assert filled.refused == (1, 2, 3, 4)
    assert filled.grid == (1, 2, 3, 4, 3, 4, 1, 2, 2, 1, 0, 3, 0, 3, 2, 1)
    assert candidates(PUZZLE, 3) == [4]


def test_a_wrong_digit_that_breaks_no_rule_can_be_corrected():
    puzzle = (0, 0, 3, 4, 3, 4, 1, 2, 2, 1, 4, 3, 4, 3, 2, 1)
    state = State(Instance(puzzle, SOLUTION), puzzle)
    assert fill(state, [(0, 0, 2)]).refused == (1,)  # the column has it
    free = (0, 0, 0, 0, 3, 4, 0, 0, 2, 1, 4, 3, 4, 3, 2, 1)
    state = State(Instance(free, SOLUTION), free)
    wrong = fill(state, [(0, 2, 2)])
    assert wrong.refused == (1,) and fill(state, [(1, 2, 2)]).refused == (1,)
    empty = (0,) * 16
    state = State(Instance(empty, SOLUTION), empty)
    assert fill(state, [(0, 0, 2), (0, 0, 1)]).grid[0] == 1


def test_rewards_by_hand():
    close = pytest.approx

    def act(text, role="filler", state=START):
        step = TASK.act(state, role, text)
        return step.reward.team, step.reward.local, step.outcome, step.done, step.solved

    assert act("[ 034 114 224 304]") == (1.0, close(0.3 + 0.5), Outcome.OK, True, True)
    assert act("[ 034 034 114 224 304]") == (1.0, close(0.3), Outcome.OK, True, True)  # not as few as any
    assert act("[ 034]") == (0.0, close(0.3 / 4), Outcome.OK, False, False)
    assert act("[ 031 034]") == (0.0, close(0.3 / 4 - 0.1 / 4 / 2), Outcome.OK, False, False)
    assert act("none") == (0.0, close(-0.1 / 4), Outcome.INVALID, False, False)
    assert act("[ 034]", "scout") == (0.0, close(0.25 / 4 * 0.3 / 4), Outcome.OK, False, False)
    # What is right, then wrong, is paid back; the givens of this one leave the choice.
    empty = (0,) * 16
    state = State(Instance(empty, SOLUTION), empty)
    right, wrong = TASK.act(state, "filler", "[ 001]"), TASK.act(state, "filler", "[ 002]")
    assert right.reward.local == -wrong.reward.local == close(0.3 / 16)
    assert TASK.act(wrong.state, "filler", "[ 001]").reward.local == close(2 * 0.3 / 16)


def test_the_scout_changes_nothing_and_its_proposal_is_shown():
    state = TASK.act(START, "scout", "[ 034 111]").state
    assert state.grid == PUZZLE
    text = TASK.prompt(state, "filler")[0]["content"]
    assert "scout [ 034 111] wrong 2\n" in text and "filled" not in text
    later = TASK.act(state, "filler", "[ 034]").state
    assert later.proposal is None and " filled 034" in TASK.prompt(later, "scout")[0]["content"]
    told = "has filled these cells, and may change them: [0, 3, 4]."
    full = dataclasses.replace(TASK, prompts="sudoku/full")
    assert (
        told in full.prompt(later, "scout")[0]["content"]
        and told in full.prompt(later, "filler")[0]["content"]
    )
    assert "has filled" not in full.prompt(START, "scout")[0]["content"]


def test_demonstrations():
    perfect = Sudoku(demonstration_error=0.0)
    for index in range(100):
        state = perfect.initial(perfect.instance("train", index))
        assert perfect.act(state, "filler", perfect.demonstration(state, "filler", random.Random(0))).solved
    state = TASK.act(START, "scout", "[ 304 034 114 224]").state
    assert TASK.demonstration(state, "filler", random.Random(0)) == "[ 304 034 114 224]"


# 17 digits in such places that trying one cell after another takes minutes, or for ever.
IMPOSSIBLE = "000005080000601043000000000010500000000106000300000005530000061000000004000000000"
FROM_THE_END = "000000000000003085001020000000507000004000100090000000500000073002010000000040009"


def text_of(grid):
    return "".join(map(str, grid))


def write(path, *rows):
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return str(path)


def row_of(grid, **more):
    return {"size": round(len(grid) ** 0.5), "puzzle": text_of(grid), **more}


def test_puzzles_of_files(tmp_path, capsys):
    """Both sizes; each once, none of a later split, training for ever and the others to their end."""
    nine = Sudoku(size=9, least_empty=30, most_empty=40).instance("train", 0)
    others = [TASK.instance("train", i).puzzle for i in range(3)]
    files = {
        "train": write(tmp_path / "train.jsonl", *map(row_of, (PUZZLE, *others, others[0], nine.puzzle))),
        "test": write(
            tmp_path / "test.jsonl",
            row_of(PUZZLE, id="a", solution=text_of(SOLUTION), empty=4),
            row_of(TASK.instance("test", 0).puzzle, solution=None),
        ),
    }
    task = Sudoku(files=files)
    drawn = [task.instance("train", i) for i in range(8)]
    assert {d.puzzle for d in drawn} == {*others, nine.puzzle} and set(drawn[:4]) == set(drawn[4:])
    assert "6 problems, without 1 for being in a later split and 1 for coming" in capsys.readouterr().err
    assert [task.instance("test", i) for i in range(2)] == [INSTANCE, TASK.instance("test", 0)]
    with pytest.raises(IndexError):
        task.instance("test", 2)
    with pytest.raises(ValueError, match="no files for split 'validation', only for train, test"):
        task.instance("validation", 0)
    assert Sudoku(files={"test": files["test"]}).instance("test", 0) == INSTANCE  # no need to train
    state = task.initial(nine)
    perfect = dataclasses.replace(task, demonstration_error=0.0)
    assert perfect.act(state, "filler", perfect.demonstration(state, "filler", random.Random(0))).solved


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("{\n", r"a.jsonl:2: no JSON"),
        ({"size": 4}, r":2: no field 'puzzle'"),
        ({"size": "4", "puzzle": text_of(PUZZLE)}, r":2: size = '4' is no int"),
        ({"size": True, "puzzle": text_of(PUZZLE)}, r":2: size = 'True' is no int"),
        ({"size": 4, "puzzle": list(PUZZLE)}, r":2: puzzle = '.*' is no str"),
        (row_of(PUZZLE, solution=list(SOLUTION)), r":2: solution = .*: expected 16 digits .* as one text"),
        ({"size": 4, "puzzle": text_of(PUZZLE).replace("0", "*")}, r":2: puzzle = .*, not '[*]'"),
        ({"size": 4, "puzzle": text_of(PUZZLE) + "\n"}, r":2: puzzle = .*, not '\\n'"),
        ({"size": 4, "puzzle": text_of(PUZZLE)[1:]}, r":2: puzzle = .*: expected 16 digits .*, not 15"),
        (row_of(PUZZLE, solution=text_of(SOLUTION)[:-1] + "."), r":2: solution = .*, not '[.]'"),
        ({"size": 9, "puzzle": IMPOSSIBLE}, r":2: puzzle: it has no solution"),
        ({"size": 6, "puzzle": "0" * 36}, r":2: size = 6: expected 4 or 9"),
        ({"size": 9, "puzzle": text_of(PUZZLE)}, r":2: puzzle = '1230\d+': expected 81 digits from 0 to 9"),
        (row_of((5, *PUZZLE[1:])), r":2: puzzle = '5230\d+': expected 16 digits from 0 to 4"),
        (row_of((1, 1, *PUZZLE[2:])), r":2: puzzle: given .* at \(row, column\) \[\(0, 0\), \(0, 1\)"),
        (row_of(SOLUTION), r":2: puzzle: no cell is empty"),
        (row_of((0,) * 16), r":2: puzzle: it has more than one solution"),
        (row_of((0,) * 81), r":2: puzzle: it has more than one solution"),
        (row_of((1, 2, 3, 0) + (0, 0, 0, 4) + (0,) * 8), r":2: puzzle: it has no solution"),
        (row_of(PUZZLE, solution="12"), r":2: solution = '12': expected 16 digits"),
        (row_of(PUZZLE, solution=text_of(PUZZLE)), r":2: solution: it is not the puzzle's, .* 12343412"),
    ],
)  # fmt: skip
def test_bad_rows_are_named(tmp_path, row, says):
    path = write(tmp_path / "a.jsonl", row_of(PUZZLE), row)
    with pytest.raises(ValueError, match=says):
        Sudoku(files={"train": path})


def test_a_dot_is_an_empty_cell(tmp_path):
    row = {"size": 4, "puzzle": text_of(PUZZLE).replace("0", "."), "solution": text_of(SOLUTION)}
    assert read_puzzles(write(tmp_path / "a.jsonl", row)) == (INSTANCE,)


def test_the_solver_guesses_little():
    """The number of guesses is a measure of time that is the same on every machine."""
    grid = tuple(map(int, FROM_THE_END))
    (found,) = solutions(grid, most=100)
    assert all(given in (0, digit) for given, digit in zip(grid, found, strict=True))
    assert all(digit in candidates((*found[:i], 0, *found[i + 1 :]), i) for i, digit in enumerate(found))
    assert list(solutions(tuple(map(int, IMPOSSIBLE)), most=8000)) == []
    assert len(list(itertools.islice(solutions((0,) * 81, most=60), 2))) == 2


def test_a_puzzle_that_takes_more_guesses_is_refused(tmp_path):
    with pytest.raises(TooHard, match="more than 3 guesses are needed"):
        list(solutions((0,) * 81, most=3))


def test_bad_files_are_named():
    with pytest.raises(ValueError, match="nowhere: no such file"):
        Sudoku(files={"train": "nowhere"})
    with pytest.raises(ValueError, match="files of split 'dev'"):
        Sudoku(files={"dev": "nowhere"})


DATA = os.environ.get("ATGRPO_DATA")


@pytest.mark.skipif(DATA is None, reason="ATGRPO_DATA names no folder of problem sets")
@pytest.mark.parametrize("size", [4, 9])
def test_the_puzzles_of_problem_sets(size):
    files = {
        split: str(Path(DATA) / "sudoku" / f"sudoku{size}_{split}.jsonl.gz") for split in ("train", "test")
    }
    task = Sudoku(files=files)
    train, test = map(read_puzzles, files.values())
    assert len(train) == {4: 1000, 9: 600}[size] and len(test) == 160
    assert {i.size for i in train + test} == {size}
    assert [task.instance("test", i) for i in range(160)] == list(test)  # none comes twice
    assert {task.instance("train", i) for i in range(len(train))} == set(train) - set(test) == set(train)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"size": 6}, r"Sudoku.size = 6: expected one of 4, 9"),
        ({"least_empty": 11}, r"Sudoku.least_empty = 11"),
        ({"most_empty": 16}, r"must be from 1 to most_empty, and that at most 12"),
        ({"workflow": Workflow(("filler", "scout"))}, "the last role decides: it must be filler"),
        ({"proposal": 0.9}, "failing could pay"),
    ],
)
def test_refuses(wrong, says):
    with pytest.raises(ValueError, match=says):
        Sudoku(**wrong)
