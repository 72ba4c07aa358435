"""Boards: what tasks draw of their states, for people."""

import asyncio
import dataclasses
import functools
import gzip
import json
import re
import sys
import types
from pathlib import Path

import pytest
from fakes import CharTokenizer, Sum
from shared_rollout import player

from atgrpo_jax.common.errors import RunError
from atgrpo_jax.run import episodes
from atgrpo_jax.tasks.calls import KEPT, MOST_CELLS, MOST_LETTERS, board_of
from atgrpo_jax.tasks.environments.gymnasium_games import FrozenLake
from atgrpo_jax.tasks.environments.stepwise import StepWise
from atgrpo_jax.tasks.games import plan_path, sokoban, split_sight, sudoku
from atgrpo_jax.tasks.games.sokoban_rooms import Instance as Room
from atgrpo_jax.tasks.games.sudoku_puzzles import Instance as Puzzle
from atgrpo_jax.tools.contract import check
from atgrpo_jax.viewing.text import SIGNS, board_text, episode_text


class Drawing(Sum):
    """Draws its numbers."""

    def drawn(self, state):
        return [["given", *(f"filled {number}" for number in state)]] if state else "nothing yet"


def lines(task, state):
    return board_text(board_of(task, state, "here")).splitlines()


def test_each_group_has_the_state_that_its_prompt_showed_and_the_episode_its_last_one():
    made, _ = player({(t, r): ["1", "3", "x"] for t in range(2) for r in "ab"}, Drawing())
    episode = asyncio.run(made.play(1, "train", 0))
    boards = [group.board for group in episode.groups]
    assert boards[:3] == ["nothing yet", (("given", "filled 3"),), (("given", "filled 3", "filled 3"),)]
    assert episode.board == (("given", *["filled 3"] * 4),)


def test_a_task_that_draws_nothing_has_no_boards():
    made, _ = player({(t, r): ["5"] for t in range(2) for r in "ab"}, Sum(), k=1)
    episode = asyncio.run(made.play(1, "train", 0))
    assert episode.solved and episode.board is None and {group.board for group in episode.groups} == {None}


@dataclasses.dataclass(frozen=True)
class Gives(Sum):
    given: object = None

    def drawn(self, state):
        return self.given


@pytest.mark.parametrize(
    "given", [7, [1], [["wall", 1]], ["wall"], {"a": 1}, [["wall"], None]], ids=lambda given: str(given)
)
def test_what_is_no_board_is_named(given):
    with pytest.raises(RunError, match=r"here: Gives.drawn gave .*, expected None, a text, or rows of texts"):
        board_of(Gives(given=given), (), "here")
    assert any("Gives.drawn gave" in str(problem) for problem in check(Gives(given=given), instances=1))


def test_boards_are_cut_to_a_size():
    assert len(board_of(Gives(given="x" * 9999), (), "here")) < KEPT + 100
    found = board_of(Gives(given=[["y" * 99] * 99] * 99), (), "here")
    assert (len(found), len(found[0]), len(found[0][0])) == (MOST_CELLS, MOST_CELLS, MOST_LETTERS)
    assert board_of(Gives(given=[]), (), "here") == ()


def test_what_draws_otherwise_each_time_breaks_the_contract():
    @dataclasses.dataclass(frozen=True)
    class Moody(Sum):
        @functools.cached_property
        def seen(self):
            return []

        def drawn(self, state):
            self.seen.append(state)
            return str(len(self.seen))

    assert "boards are pure" in {problem.rule for problem in check(Moody(), instances=1, episodes=1)}


def test_plan_path_draws_the_way_that_was_proposed():
    task = plan_path.PlanPath(size=3)
    instance = plan_path.Instance(("..#", "#..", "..."), (0, 0), (2, 2))
    state = task.initial(instance)
    assert lines(task, state) == ["@ . #", "# . .", ". . G"]
    proposed = task.act(state, "scout", "[R D L]").state  # the last one is blocked
    assert lines(task, proposed) == ["@ + #", "# + .", ". . G"]
    solved = task.act(state, "scout", "[R D D R]").state
    assert board_of(task, solved, "here")[2] == ("floor", "proposed", "proposed G")
    moved = task.act(proposed, "mover", "[R D]").state
    assert lines(task, moved) == [". . #", "# @ .", ". . G"]
    assert lines(task, task.act(moved, "mover", "[R D]").state) == [". . #", "# . .", ". . *"]


def test_sokoban_draws_boxes_goals_and_what_was_proposed():
    task = sokoban.Sokoban(size=5)
    room = Room(("#####", "#@$.#", "#   #", "#####"))
    state = task.initial(room)
    assert lines(task, state) == ["# # # # #", "# @ $ G #", "# . . . #", "# # # # #"]
    proposed = task.act(state, "scout", "[D]").state
    assert lines(task, proposed)[1:3] == ["#  @  $  G  #", "#  +@ .  .  #"]
    assert board_of(task, proposed, "here")[2][1] == "proposed @"
    assert lines(task, task.act(state, "mover", "[R]").state)[1] == "#  .  @  *$ #"
    on_goal = dataclasses.replace(state, player=(1, 3))
    assert lines(task, on_goal)[1] == "#  .  $  @+ #" and board_of(task, on_goal, "here")[1][3] == "agent +"


def test_sudoku_tells_given_filled_wrong_and_proposed_digits_apart():
    task = sudoku.Sudoku()
    solution = (1, 2, 3, 4, 3, 4, 1, 2, 2, 1, 4, 3, 4, 3, 2, 1)
    puzzle = (0, 0, 0, 4, *solution[4:])
    state = task.initial(Puzzle(puzzle, solution))
    assert lines(task, state) == [
        ".  .     .  '4",
        "'3 '4    '1 '2",
        "",
        "'2 '1    '4 '3",
        "'4 '3    '2 '1",
    ]
    proposed = task.act(state, "scout", "[001]").state
    assert board_of(task, proposed, "here")[0] == ("proposed 1", "floor", "", "floor", "given 4")
    filled = dataclasses.replace(state, grid=(1, 3, *puzzle[2:]))
    assert board_of(task, filled, "here")[0][:2] == ("filled 1", "wrong 3")
    assert [lines(task, of)[0] for of in (proposed, filled)] == ["+1 .     .  '4", "=1 x3    .  '4"]


def test_split_sight_marks_what_the_message_names():
    task = split_sight.SplitSight(size=3)
    instance = plan_path.Instance(("..#", "#..", "..."), (0, 0), (2, 2))
    told = task.act(task.initial(instance), "seer", "[10 11]").state
    assert lines(task, told) == ["@  .  #", "#! x! .", ".  .  G"]
    assert board_of(task, told, "here")[1] == ("wall !", "wrong !", "floor")


def test_the_board_in_the_docs():
    text = (Path(__file__).parents[1] / "docs" / "your-task.md").read_text()
    code = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    (task,), (method,) = ([c for c in code if word in c] for word in ("class Sorting", "def drawn"))
    module = sys.modules["sorting"] = types.ModuleType("sorting")
    exec(task + method, module.__dict__)
    del sys.modules["sorting"]
    module.Sorting.drawn = module.drawn
    sorting = module.Sorting()
    state = sorting.act(module.State((3, 21, 5, 8)), "planner", "3 5 8 21").state
    assert lines(sorting, state) == ["'3  '21 '5  '8", "+3  +5  +8  +21"]
    assert check(sorting, instances=2, episodes=4) == []


def test_frozen_lake_draws_its_map():
    pytest.importorskip("gymnasium")
    task = StepWise(FrozenLake())
    state = task.initial(task.instance("train", 0))
    board = board_of(task, state, "here")
    assert (len(board), len(board[0]), board[0][0], board[3][3]) == (4, 4, "agent", "goal")
    holes = {f"{r}{c}" for r, row in enumerate(board) for c, cell in enumerate(row) if cell == "hole"}
    assert holes == set(task.prompt(state, "player")[0]["content"].split("holes")[1].split("\nat")[0].split())


def test_a_terminal_prints_a_board_and_nothing_in_it_moves_the_cursor():
    rows = ("given 12", "", "wall"), ("odd \x1b[2J", "new", "")
    assert board_text(rows) == "'12                     #\nodd:\\x1b[2J new"
    assert board_text("a\n\x1bb") == "a\n\\x1bb"


def test_every_kind_has_a_sign_of_its_own_and_a_line_says_which_are_there():
    assert len(set(SIGNS.values())) == len(SIGNS) and all(len(sign) == 1 for sign in SIGNS.values())
    made, _ = player({(t, r): ["1"] for t in range(2) for r in "ab"}, Drawing(), k=1)
    episode = asyncio.run(made.play(1, "train", 0))
    content = episodes.written(1, [episode], (), CharTokenizer(), {"a": 1.0, "b": 1.0})
    (record,) = map(json.loads, gzip.decompress(content).splitlines())
    whole = episode_text(record, record["groups"]).splitlines()
    assert whole[1] == "signs on boards: ' given, = filled" and whole.count("   '  =1 =1") == 1
    first = episode_text(record, record["groups"][:1])  # its board is a text
    assert "signs" not in first and "nothing yet" in first
