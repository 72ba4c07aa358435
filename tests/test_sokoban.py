import collections
import itertools
import json
import random

import pytest

from atgrpo_jax.common.types import Outcome
from atgrpo_jax.tasks.games.grid import MOVES
from atgrpo_jax.tasks.games.sokoban import Sokoban, State, walk_from
from atgrpo_jax.tasks.games.sokoban_levels import level_of
from atgrpo_jax.tasks.games.sokoban_rooms import Instance
from atgrpo_jax.tasks.games.sokoban_solver import FAR, TooHard, push_distances, pushes, solve

TASK = Sokoban()
ROOM = Instance(("######", "#@   #", "# $  #", "#    #", "#   .#", "######"))
START = State(ROOM, (1, 1), ((2, 2),))


def moved(instance, player, boxes, move):
    """The player and the boxes after a move; the same ones if it is blocked."""
    down, right = MOVES[move]
    target = player[0] + down, player[1] + right
    beyond = target[0] + down, target[1] + right
    if target not in instance.floor or (
        target in boxes and (beyond not in instance.floor or beyond in boxes)
    ):
        return player, boxes
    return target, boxes ^ {target, beyond} if target in boxes else boxes


def shortest(instance):
    """Moves of a shortest solution, by trying everything; None if there is none."""
    start = instance.player, instance.boxes
    distance, queue = {start: 0}, collections.deque([start])
    while queue:
        player, boxes = queue.popleft()
        if boxes == instance.goals:
            return distance[player, boxes]
        for move in MOVES:
            after = moved(instance, player, boxes, move)
            if after not in distance:
                distance[after] = distance[player, boxes] + 1
                queue.append(after)
    return None


@pytest.mark.parametrize(
    ("task", "count"), [(TASK, 1000), (Sokoban(boxes=2), 1000), (Sokoban(boxes=3, walls=0.05), 100)]
)
def test_every_room_can_be_solved_in_as_many_moves_as_asked_for(task, count):
    for index in range(count):
        instance = task.instance("train", index)
        assert len(instance.boxes) == len(instance.goals) == task.boxes
        assert not instance.boxes & instance.goals
        assert task.least_moves <= shortest(instance) <= task.most_moves


@pytest.mark.parametrize("walls", [0.05, 0.15])
def test_rooms_of_four_boxes_can_be_solved(walls):
    """Too many positions to try them all: the solver's moves are replayed by rules of the test's own."""
    task = Sokoban(boxes=4, walls=walls)
    for index in range(30):
        instance = task.instance("train", index)
        assert len(instance.boxes) == len(instance.goals) == 4 and not instance.boxes & instance.goals
        moves = solve(instance, tuple(sorted(instance.boxes)), instance.player)
        player, boxes = instance.player, instance.boxes
        for move in moves:
            player, boxes = moved(instance, player, boxes, move)
        assert boxes == instance.goals


@pytest.mark.parametrize(("boxes", "count"), [(1, 1000), (2, 60)])
def test_the_solver_solves_and_its_bound_holds(boxes, count):
    task = Sokoban(boxes=boxes)
    for index in range(count):
        instance = task.instance("test", index)
        state = task.initial(instance)
        moves = solve(instance, state.boxes, state.player)
        walk = walk_from(state, moves)
        assert frozenset(walk.boxes) == instance.goals and len(walk.moves) == len(moves) >= shortest(instance)
        assert not walk.bumps and pushes(instance, state.boxes) <= len(moves)


def test_what_cannot_be_solved():
    corner = Instance(("#####", "#$ @#", "#  .#", "#####"))
    assert pushes(corner, ((1, 1),)) >= FAR and solve(corner, ((1, 1),), (1, 3)) is None
    assert shortest(corner) is None


def test_push_distances_by_hand():
    (distance,) = push_distances(ROOM).values()
    assert distance[4, 4] == 0 and distance[4, 3] == 1 and distance[2, 2] == 4
    assert (4, 1) not in distance and (1, 4) not in distance  # corners
    assert (1, 2) not in distance  # along a wall without a goal
    assert pushes(ROOM, ((2, 2),)) == 4


def test_splits_share_no_room_and_instances_are_pure():
    drawn = {s: [TASK.instance(s, i) for i in range(300)] for s in ("train", "validation", "test")}
    assert drawn["train"] == [Sokoban().instance("train", i) for i in range(300)]
    for one, other in itertools.combinations(drawn.values(), 2):
        assert not set(one) & set(other)
    with pytest.raises(ValueError, match="split 'dev'"):
        TASK.instance("dev", 0)


def test_walks():
    walk = walk_from(START, "RDDRD")  # onto (1, 2), the box down twice, beside it, and down
    assert (walk.player, walk.boxes, walk.bumps, walk.stuck) == ((4, 3), ((4, 2),), (), False)
    walk = walk_from(START, "U?RRRR")
    assert walk.player == (1, 4) and walk.bumps == (1, 2, 6)
    # Cells are moves; one that is not next to the player's changes nothing.
    assert walk_from(START, TASK.read(START, "[ 11 12 22 32 33 43]")) == walk_from(START, "RDDRD")
    assert walk_from(START, ["44"]).bumps == (1,)
    two = State(Instance(("#####", "#@$$#", "#.. #", "#####")), (1, 1), ((1, 2), (1, 3)))
    assert walk_from(two, "R").bumps == (1,)  # a box is behind the box


def test_a_walk_ends_where_all_is_solved():
    walk = walk_from(START, "RDDLDRRUUU")
    assert (walk.moves, walk.boxes, walk.player) == ("RDDLDRR", ((4, 4),), (4, 3))


def test_rewards_by_hand():
    close = pytest.approx

    def act(text, role="mover", state=START):
        step = TASK.act(state, role, text)
        return step.reward.team, step.reward.local, step.outcome, step.done, step.solved

    assert act("[RDDLDRR]") == (1.0, close(0.3 + 0.5), Outcome.OK, True, True)
    assert act("[RD]") == (0.0, close(0.3 / 4), Outcome.OK, False, False)
    assert act("[R]") == (0.0, close(0.0), Outcome.OK, False, False)
    assert act("[UR]") == (0.0, close(-0.1 / 4 / 2), Outcome.OK, False, False)
    assert act("none") == (0.0, close(-0.1 / 4), Outcome.INVALID, False, False)
    assert act("[RDDLDRR]", "scout") == (0.0, close(0.25 / 4 * 1.8), Outcome.OK, False, False)
    # To a wall without a goal: the end, and what was done before is lost.
    assert act("[DDRU]") == (0.0, close(-0.1 / 4), Outcome.OK, True, False)


def test_to_and_fro_pays_nothing():
    state, total = START, 0.0
    for text in ("[RD]", "[LDDRU]", "[RD]"):
        step = TASK.act(state, "mover", text)
        state, total = step.state, total + step.reward.local
    assert state.boxes == START.boxes and total == pytest.approx(0.0)


def test_the_proposal_is_shown():
    state = TASK.act(START, "scout", "[ 12 22 32 92]").state
    assert (state.player, state.boxes) == ((1, 1), ((2, 2),))
    text = TASK.prompt(state, "mover")[0]["content"]
    assert "scout [ 11 12 22 32 32] ends at 32 boxes 42 hits at 4\n" in text
    assert text.endswith("goals 44 boxes 22 at 11")
    symbols = Sokoban(view="symbols")
    assert "\n".join(ROOM.rows) in symbols.prompt(START, "mover")[0]["content"]
    assert "scout [RDD?] ends" in symbols.prompt(state, "mover")[0]["content"]


def test_demonstrations():
    perfect = Sokoban(demonstration_error=0.0, demonstration_moves=99)
    for index in range(100):
        state = perfect.initial(perfect.instance("train", index))
        assert perfect.act(state, "mover", perfect.demonstration(state, "mover", random.Random(0))).solved


def write_levels(path, rooms):
    path.write_text("\n".join(json.dumps({"grid": room}) for room in rooms) + "\n")
    return str(path)


def test_levels_of_files(tmp_path):
    rooms = [["#####", f"#@{' ' * i}$.{' ' * (3 - i)}#", "#" * (5 + 3)] for i in range(4)]
    rooms = [[row.ljust(8, "#")[:8] for row in room] for room in rooms]
    files = {
        "train": write_levels(tmp_path / "train.jsonl", rooms),
        "test": write_levels(tmp_path / "test.jsonl", rooms[:1]),
    }
    task = Sokoban(levels=files, view="symbols")
    drawn = [task.instance("train", i) for i in range(6)]
    assert {d.rows for d in drawn} == {tuple(room) for room in rooms[1:]}  # what is tested on is left out
    assert set(drawn[:3]) == set(drawn[3:]) and task.instance("test", 0).rows == tuple(rooms[0])
    with pytest.raises(IndexError):
        task.instance("test", 1)
    with pytest.raises(ValueError, match="no files for split 'validation', only for train, test"):
        task.instance("validation", 0)
    held_out = Sokoban(levels={"test": files["test"]}, view="symbols")  # no need to train
    assert held_out.instance("test", 0) == task.instance("test", 0)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", r"train.jsonl:2: no JSON"),
        ("[]", r":2: no JSON object"),
        ("{}", r":2: no field 'grid'"),
        ('{"grid": "###"}', r":2: grid = '###' is no list"),
        ('{"grid": [1, 2]}', r":2: grid: expected rows"),
        ('{"grid": ["####", "#@*#", "####"]}', r":2: grid: it is solved, or no box can"),
        ('{"grid": ["#####", "#$@.#", "#####"]}', r":2: grid: it is solved, or no box can"),
        ('{"grid": ["#######", "#@ B .#", "#######"]}', r":2: grid: 'B' in row 1 is no symbol"),
        ('{"grid": ["#######", "#@ xX.#", "#######"]}', r":2: grid: 'x' in row 1 is no symbol"),
        ('{"grid": ["#######", "#@\\t$ .#", "#######"]}', r":2: grid: '.t' in row 1 is no symbol"),
        ('{"grid": ["#####", ["#", "@"], "#####"]}', r":2: grid: expected rows of text, and row 1 is"),
        ('{"grid": []}', r":2: grid: expected rows .* 0 players, 0 boxes and 0 goals"),
        ('{"grid": ["#######", "#@@$ .#", "#######"]}', r":2: grid: expected .* 2 players, 1 boxes and 1"),
        ('{"grid": ["#######", "#@$$ .#", "#######"]}', r":2: grid: expected .* 1 players, 2 boxes and 1"),
        ('{"grid": ["#######", "#@ $ +#", "#######"]}', r":2: grid: expected .* 2 players, 1 boxes and 1"),
        ('{"grid": ["  ####", "###  #", "#@$.#", "#####"]}', r":2: grid: expected .* are 2 lengths of rows"),
        ('{"grid": ["      ", "@  $ .", "      "]}', r":2: grid: there is no wall around the player"),
        ('{"grid": ["#######", "#@ $ . ", "#######"]}', r":2: grid: there is no wall around the player"),
        (
            '{"grid": ["########", "#@#  $.#", "### ####", "########"]}',
            r":2: grid: no way leads .* \(1, 5\)",
        ),
        (
            '{"grid": ["#######", "#@$ #.#", "#######"]}',
            r":2: grid: no way leads the player to the .* \(1, 5\)",
        ),
        (
            '{"grid": ["######", "#@   #", "# $$ #", "# $$ #", "#....#", "######"]}',
            r":2: grid: it cannot be sol",
        ),
        (
            json.dumps({"grid": ["#" * 60, "#@$." + " " * 55 + "#", "#" * 60]}),
            r":2: grid: 3 rows of 60 symbols",
        ),
        ('{"grid": ["#@$#"]}', r":2: grid: expected rows of one length, one player"),
    ],
)
def test_bad_levels_are_named(tmp_path, line, says):
    path = tmp_path / "train.jsonl"
    path.write_text('{"grid": ["#####", "#@$.#", "#####"]}\n' + line + "\n")
    with pytest.raises(ValueError, match=says):
        Sokoban(levels={"train": str(path)})
    with pytest.raises(ValueError, match="nowhere: no such file"):
        Sokoban(levels={"train": "nowhere"})


def test_other_ways_to_write_a_level_are_read():
    rooms = (
        ["#######", "#     #", "#@ $ .#", "#######"],
        ["#######", "#--- _#", "#@ $_.#", "#######"],
        ["#######\r", "#     #\r\n", "#@ $ .#\n", "#######"],
    )
    assert {level_of(room).rows for room in rooms} == {tuple(rooms[0])}
    on_goal = level_of(["#######", "#+$  *#", "#     #", "#######"])
    assert (on_goal.player, on_goal.goals) == ((1, 1), {(1, 1), (1, 5)}) and on_goal.boxes == {(1, 2), (1, 5)}
    # Boxes on goals that nobody gets to are as good as walls; what is outside of the walls is nobody's.
    assert level_of(["  #####", "  #@$.#", "###   #", "#*#####", "###    "]).boxes == {(1, 4), (3, 1)}


def test_levels_above_ten_rows_need_symbols(tmp_path):
    wide = ["#" * 12, "#@$." + " " * 7 + "#", "#" * 12]
    files = {"test": write_levels(tmp_path / "test.jsonl", [wide])}
    assert Sokoban(levels=files, view="symbols").instance("test", 0).rows == tuple(wide)
    with pytest.raises(ValueError, match='view = .cells.: .* levels of 12 rows or columns: use "symbols"'):
        Sokoban(levels=files)


def test_what_a_bounded_search_says_is_true():
    """A level is refused only if all that can be reached was tried: compared with a search of the test's."""
    rng, refused = random.Random(0), 0
    for _ in range(300):
        cells = [rng.choice("     #") for _ in range(15)]
        symbols = rng.choice(("@$.", "@$$.."))
        for symbol, place in zip(symbols, rng.sample(range(15), len(symbols)), strict=True):
            cells[place] = symbol
        room = ["#######", *(f"#{''.join(cells[i : i + 5])}#" for i in (0, 5, 10)), "#######"]
        solvable = shortest(Instance(tuple(room))) is not None
        try:
            level_of(room)
            assert solvable, room
        except ValueError:
            assert not solvable, room
            refused += 1
    assert 100 < refused < 280


def test_the_solver_looks_at_so_many_positions():
    with pytest.raises(TooHard, match="no solution after 3 positions"):
        solve(ROOM, ((2, 2),), (1, 1), 3)


def test_a_level_too_hard_for_the_solver_is_demonstrated_by_possible_moves():
    class Impatient(Sokoban):
        positions = 2

    task = Impatient(view="symbols", demonstration_moves=9)
    moves = task.demonstration(START, "mover", random.Random(0)).strip("[]")
    assert len(moves) == 9 and walk_from(START, moves).bumps == ()


def test_where_no_solution_is_left_possible_moves_are_demonstrated():
    lost = State(Instance(("#####", "#$ @#", "#  .#", "#####")), (1, 3), ((1, 1),))
    moves = (
        Sokoban(view="symbols", demonstration_moves=5)
        .demonstration(lost, "mover", random.Random(0))
        .strip("[]")
    )
    assert len(moves) == 5 and walk_from(lost, moves).bumps == ()


@pytest.mark.parametrize("boxes", [1, 2, 4])
def test_pushes_are_those_of_the_best_order(boxes):
    task = Sokoban(boxes=boxes)
    for index in range(30):
        instance = task.instance("train", index)
        distance, goals = push_distances(instance), sorted(instance.goals)
        placed = tuple(sorted(instance.boxes))
        orders = (
            [distance[goal].get(box, FAR) for box, goal in zip(placed, order, strict=True)]
            for order in itertools.permutations(goals)
        )
        assert pushes(instance, placed) == min(map(sum, orders))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"size": 3}, "Sokoban.size = 3"),
        ({"size": 12}, 'above 10 use view "symbols"'),
        ({"boxes": 5}, "Sokoban.boxes = 5"),
        ({"walls": 0.95}, "no 6x6 room with 1 boxes"),
        ({"least_moves": 40}, "Sokoban.least_moves = 40"),
    ],
)
def test_refuses(wrong, says):
    with pytest.raises(ValueError, match=says):
        Sokoban(**wrong)
