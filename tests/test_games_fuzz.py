"""Generated texts, outputs, rows and levels: their readers raise nothing but what they say."""

import collections
import functools
import itertools
import json
import random

import pytest
from fuzz import fuzz
from hypothesis import given
from hypothesis import strategies as st

from atgrpo_jax.sandbox.protocol import ProgramResult
from atgrpo_jax.tasks.data import read_rows, words_of
from atgrpo_jax.tasks.games.plan_path import PlanPath
from atgrpo_jax.tasks.games.sokoban import Sokoban
from atgrpo_jax.tasks.games.sokoban_levels import level_of
from atgrpo_jax.tasks.games.sokoban_solver import solve
from atgrpo_jax.tasks.games.sudoku import Sudoku
from atgrpo_jax.tasks.games.sudoku_grids import TooHard, solutions
from atgrpo_jax.tasks.games.sudoku_puzzles import read_puzzles
from atgrpo_jax.tasks.texts import blocks, last_list, python_block
from atgrpo_jax.tasks.workflow import Workflow

some = fuzz(40)
PIECES = (
    "[", "]", "(", ")", "{", "}", ",", " ", "\n", "\r\n", "\t", "'", '"', "'''", '"""', "\\", "#",
    "`", "```", "````", "```python\n", "~~~", "</think>", "U", "R", "up", "right", "→", "->", "03", "12",
    "034", "1", "-1", "0.5", "9" * 30, "[0, 2, 3]", "(0, 1)", "print(1)", ">>> f()", "x = 1", "\\boxed{",
    "é", "²", "٣", "\x00", "\u2028", "\ud800",
)  # fmt: skip
texts = st.one_of(st.lists(st.sampled_from(PIECES), max_size=40).map("".join), st.text(max_size=80))


@functools.cache
def task(name):
    game, decider = {
        "plan": (PlanPath, "mover"),
        "sokoban": (Sokoban, "mover"),
        "sudoku": (Sudoku, "filler"),
    }[name]
    folder = {"plan": "plan_path"}.get(name, name)
    return game(prompts=f"{folder}/full", workflow=Workflow(("scout", "tool", decider)), proposal=0.1)


@pytest.mark.parametrize("name", ["plan", "sokoban", "sudoku"])
@some
@given(text=texts, printed=texts, times=st.sampled_from((1, 1, 1, 3000)), data=st.data())
def test_games_take_any_text(name, text, printed, times, data):
    game = task(name)
    state = game.initial(game.instance("train", data.draw(st.integers(0, 20))))
    for role in game.workflow.speakers:
        said = f"```python\n{text}\n```" if role == "tool" else text * times
        runs = [ProgramResult("ok", printed * times, printed, True)]
        step = game.act(state, role, said, runs if role == "tool" else ())
        assert repr(step) == repr(game.act(state, role, said, runs if role == "tool" else ()))
        assert -1 <= step.reward.local <= 1 and step.reward.team in (0.0, 1.0)
        shown = game.prompt(step.state, game.workflow.speakers[-1])[0]["content"]
        assert len(shown) < 12_000
        state = step.state


@some
@given(text=texts)
def test_what_is_found_in_a_text_is_in_it(text):
    plain = text.replace("\r\n", "\n").replace("\r", "\n")
    for block in blocks(text):
        assert all(line in plain for line in block.code.split("\n"))
    program = python_block(text)
    assert program is None or (program.strip() and not program.lstrip().startswith(">>>"))
    found = last_list(text)
    assert found is None or all(part in text for part in ([found] if isinstance(found, str) else found))


@some
@given(
    lines=st.lists(
        st.sampled_from(("a = f(1)", "b = '```'", "# it's", "  c = 2", "s = '''", "'''", "")), max_size=8
    )
)
def test_a_program_comes_back_as_it_was_written(lines):
    """Whatever stands before and after it, if its strings end."""
    code = "\n".join(["x = 1", *lines, *(["'''"] if sum("'''" in line for line in lines) % 2 else [])])
    fences = (("```", "python"), ("```", " py"), ("````", "Python3"))
    for (close, tag), end in itertools.product(fences, ("\n", "\r\n")):
        text = f"So:\n{close}{tag}\n{code}\n{close}\nIt prints:\n```\n5\n```\n".replace("\n", end)
        assert python_block(text) == code.rstrip()


@some
@given(text=st.text(alphabet="aAbB12+-∪∩√ .,;?!'\"$^{}()\\\n", max_size=30))
def test_spaces_between_signs_do_not_count_and_signs_do(text):
    words = words_of(text)
    assert words_of(f" {text}\n") == words and words_of("\n\t".join(text.split(" "))) == words
    assert words_of(text + " ∪") != words_of(text + " ∩") != words


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("rows")


COUNT = itertools.count()


@some
@given(
    row=st.fixed_dictionaries(
        {}, optional={"size": values | st.sampled_from((4, 9)), "puzzle": values, "solution": values}
    )
)
def test_odd_rows_of_puzzles_are_named(folder, row):
    path = folder / f"{next(COUNT)}.jsonl"
    path.write_text(json.dumps(row))
    with pytest.raises(ValueError, match=r"\.jsonl:1: "):
        read_puzzles(str(path))


@some
@given(raw=st.binary(max_size=60) | values.map(lambda value: json.dumps({"a": value}).encode()))
def test_any_bytes_are_rows_or_named(folder, raw):
    path = folder / "raw.jsonl"
    path.write_bytes(raw)
    try:
        assert all(isinstance(row, dict) for _, row in read_rows(str(path), {}))
    except ValueError as error:
        assert "raw.jsonl" in str(error)


@some
@given(rows=st.lists(st.text(alphabet="##### $.@*+-_x\t", max_size=7), max_size=6) | values)
def test_any_rows_are_a_level_or_refused(rows):
    try:
        level = level_of(rows if isinstance(rows, list) else [rows])
    except ValueError:
        return
    assert len(level.boxes) == len(level.goals) and level.boxes != level.goals


@some
@given(seed=st.integers(0, 10**6), boxes=st.integers(1, 3))
def test_a_level_is_refused_only_if_it_has_no_solution(seed, boxes):
    rng = random.Random(seed)
    cells = [rng.choice("     #") for _ in range(15)]
    for symbol, place in zip(
        "@" + "$" * boxes + "." * boxes, rng.sample(range(15), 2 * boxes + 1), strict=True
    ):
        cells[place] = symbol
    room = ["#######", *(f"#{''.join(cells[i : i + 5])}#" for i in (0, 5, 10)), "#######"]
    try:
        level = level_of(room)
    except ValueError:
        level = None
    if level is not None:
        assert solve(level, tuple(sorted(level.boxes)), level.player)


UNITS = [range(4 * i, 4 * i + 4) for i in range(4)] + [range(i, 16, 4) for i in range(4)]
UNITS += [(i, i + 1, i + 4, i + 5) for i in (0, 2, 8, 10)]


def fits(cells):
    counts = [collections.Counter(cells[i] for i in unit if cells[i]) for unit in UNITS]
    return all(count == 1 for unit in counts for count in unit.values())


def completions(cells):
    """All ways to fill a grid of 4x4, by trying every digit in every cell."""
    if not fits(cells):
        return []
    if 0 not in cells:
        return [tuple(cells)]
    place = cells.index(0)
    return [
        grid for digit in range(1, 5) for grid in completions([*cells[:place], digit, *cells[place + 1 :]])
    ]


@some
@given(cells=st.lists(st.sampled_from((0, 0, 0, 0, 0, 1, 2, 3, 4)), min_size=16, max_size=16))
def test_the_solver_finds_what_trying_everything_finds(cells):
    if fits(cells):  # contradictions are found before
        assert sorted(solutions(tuple(cells), most=10**6)) == completions(cells)


@some
@given(places=st.lists(st.integers(0, 80), min_size=10, max_size=30, unique=True), seed=st.integers(0, 10**6))
def test_the_solvers_work_is_bounded(places, seed):
    rng, grid = random.Random(seed), [0] * 81
    for place in places:
        grid[place] = rng.randint(1, 9)
    try:
        for found in itertools.islice(solutions(tuple(grid), most=50), 2):
            assert all(a in (0, b) for a, b in zip(grid, found, strict=True))
    except TooHard as error:
        assert "more than 50 guesses" in str(error)
