import dataclasses
import itertools
import random

import pytest

from atgrpo_jax.common.types import Outcome
from atgrpo_jax.tasks.games.game import Proposal
from atgrpo_jax.tasks.games.grid import parse_moves
from atgrpo_jax.tasks.games.plan_path import Instance, PlanPath, State, Walk, distances, walk_from
from atgrpo_jax.tasks.protocol import digest
from atgrpo_jax.tasks.workflow import Workflow

TASK = PlanPath(progress=0.4, shortest=0.2, illegal=0.1, invalid=0.2, proposal=0.2)
# S . #      the goal is 4 moves away: D D R R
# . # .
# . . G
GRID = Instance(("..#", ".#.", "..."), start=(0, 0), goal=(2, 2))
START = State(GRID, (0, 0))


def test_instances_are_pure_functions_of_split_and_index():
    first = [TASK.instance("train", i) for i in range(50)]
    again = [PlanPath().instance("train", i) for i in reversed(range(50))][::-1]
    assert first == again
    assert len(set(first)) == 50
    assert TASK.instance("train", 0) != PlanPath(seed=1).instance("train", 0)


def test_splits_are_disjoint_even_where_instances_are_few():
    small = PlanPath(size=2, obstacles=0.3)
    drawn = {
        split: {small.instance(split, i) for i in range(400)} for split in ("train", "validation", "test")
    }
    assert all(drawn.values())
    for one, other in itertools.combinations(drawn.values(), 2):
        assert not one & other


def shortest(instance):
    """Moves of a shortest path from start to goal, by widening the set of cells reached; None without one."""
    cells = {(r, c) for r, row in enumerate(instance.rows) for c, cell in enumerate(row) if cell == "."}
    reached = {instance.start} & cells
    for count in range(len(cells)):
        if instance.goal in reached:
            return count
        reached |= {(r + i, c + j) for r, c in reached for i, j in ((0, 1), (1, 0), (0, -1), (-1, 0))} & cells
    return None


@pytest.mark.parametrize(
    ("size", "obstacles", "split"),
    [(6, 0.22, "train"), (6, 0.22, "test"), (10, 0.22, "train"), (5, 0.45, "train")],
)
def test_every_instance_can_be_solved_and_the_oracle_is_as_short_as_any(size, obstacles, split):
    task = PlanPath(
        size=size,
        obstacles=obstacles,
        view="symbols",
        demonstration_error=0.0,
        demonstration_moves=size * size,
    )
    for index in range(1000):
        instance = task.instance(split, index)
        least = shortest(instance)
        assert least is not None and 0 < least == distances(instance)[instance.start]
        text = task.demonstration(task.initial(instance), "mover", random.Random(index))
        step = task.act(task.initial(instance), "mover", text)
        assert step.solved and len(text.strip("[]")) == least
        assert step.reward.parts == {"progress": task.progress, "shortest": task.shortest, "illegal": 0.0}


def test_distances():
    assert distances(GRID) == {
        (2, 2): 0, (1, 2): 1, (2, 1): 1, (2, 0): 2, (1, 0): 3, (0, 0): 4, (0, 1): 5,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "moves"),
    [
        ("[URDL]", "URDL"),
        ("[U, R, D]", "URD"),
        ("['U', \"R\"]", "UR"),
        ("I think\n#### [d, d]\nthen done", "DD"),
        ("[U] no, [R]", "R"),
        ("[UXR]", "U?R"),
        ("[ 03 04? 14]", ["03", "04", "?", "14"]),
        ("['03', U]", ["03", "U"]),
        ("[]", ""),
        ("[ ]", ""),
        ("UR", ""),
        ("[UR", ""),
        ("", ""),
    ],
)
def test_parse_moves(text, moves):
    assert parse_moves(text, (9, 9)) == list(moves)


def test_walk_bumps_stay_in_place_and_the_goal_ends_it():
    walk = walk_from(GRID, (0, 0), "URR?DDRRRR")
    # U leaves the grid, the second R hits a wall, ? is no move; D from (0, 1) hits a wall, twice.
    assert walk == Walk("URR?DDRRRR", (0, 1), (1, 3, 4, 5, 6, 7, 8, 9, 10))
    walk = walk_from(GRID, (0, 0), "DDRRUU")
    assert walk == Walk("DDRR", (2, 2), ())


def test_cells_name_the_moves_that_lead_to_them():
    def walk(text):
        return walk_from(GRID, (0, 0), TASK.read(START, text))

    assert walk("[10 20 21 22]") == walk("[00 10 20 R 22]") == Walk("DDRR", (2, 2), ())
    # 02 is a wall, 12 is not next to 01, and a cell is not next to itself.
    assert walk("[01 02 12 01 00]") == Walk("RR??L", (0, 0), (2, 3, 4))
    assert walk("[00]") == walk("nothing") == Walk("", (0, 0), ())


def test_rewards_by_hand():
    def mover(text, state=START):
        step = TASK.act(state, "mover", text)
        return step.reward.team, step.reward.local, step.outcome, step.done, step.solved

    close = pytest.approx
    # All four moves of a shortest path: the whole progress, and 0.2 for arriving by one.
    assert mover("[DDRR]") == (1.0, close(0.4 + 0.2), Outcome.OK, True, True)
    assert mover("[DDUDRR]") == (1.0, close(0.4), Outcome.OK, True, True)
    # Half of it.
    assert mover("[DD]") == (0.0, close(0.5 * 0.4), Outcome.OK, False, False)
    # The same end by a detour of two; and a quarter of the way with one bump in five moves.
    assert mover("[RLDD]")[1] == close(0.5 * 0.4)
    assert mover("[LDDUU]")[1] == close(-0.1 / 4 / 5)
    assert mover("[LDUDU]")[1] == close(-0.1 / 4 / 5)
    # A step back is paid back, from wherever.
    assert mover("[U]", State(GRID, (1, 0)))[1] == close(-0.25 * 0.4)
    for nothing in ("no list", "[]", "[00]"):
        assert mover(nothing) == (0.0, close(-0.2 / 4), Outcome.INVALID, False, False)


def test_the_scout_is_scored_on_its_simulation_and_moves_nobody():
    step = TASK.act(START, "scout", "[DDRR]")
    assert step.reward.team == 0.0
    assert step.reward.local == pytest.approx(0.2 / 4 * (1 + 0.4 + 0.2))
    assert not step.done
    assert step.state.position == (0, 0)
    assert step.state.proposal == Proposal(walk_from(GRID, (0, 0), "DDRR"), True)
    # The mover's action clears it for the next turn; so does a scout without a list.
    assert TASK.act(step.state, "mover", "[D]").state == State(GRID, (1, 0))
    assert TASK.act(step.state, "scout", "").state == START


def test_a_mover_that_does_what_was_proposed_is_counted():
    """What comes behind the goal does not matter, nor how moves are written; another way there does."""
    shown = TASK.act(START, "scout", "[DDRRU]").state

    def repeats(text, state=shown):
        return TASK.act(state, "mover", text).metrics

    assert repeats("[DDRR]") == repeats("[00 10 20 21 22 12]") == {"repeats": 1.0}
    assert repeats("[DDUDRR]") == repeats("[DDR]") == {"repeats": 0.0}
    assert repeats("[DD]", START) == repeats("no list") == {}  # nothing was proposed, or done
    assert TASK.act(shown, "scout", "[DDRR]").metrics == {}


def test_prompts_show_the_current_position_and_the_proposal():
    later = TASK.act(TASK.act(START, "mover", "[DD]").state, "scout", "[RUR]").state
    text = TASK.prompt(later, "mover")[0]["content"]
    assert text.endswith("3x3 blocked 02 11\nlist cells in brackets\nat 20 goal 22")
    assert "scout [ 20 21 21 22] ends at the goal hits at 2" in text
    drawn = dataclasses.replace(TASK, view="symbols").prompt(later, "mover")[0]["content"]
    assert drawn.endswith("..#\n.#.\n@.G\nlist moves U D L R in brackets\nat 20 goal 22")
    assert "scout [RUR] ends at the goal hits at 2" in drawn
    assert "scout [" not in TASK.prompt(START, "mover")[0]["content"]


def test_a_simulated_walk_away_costs_no_more_than_the_whole_progress():
    near = State(dataclasses.replace(GRID, start=(2, 1)), (2, 1))
    step = TASK.act(near, "scout", "[LUU]")  # from 1 to 4 moves away, where D = 1
    assert step.reward.parts["proposal"] == pytest.approx(0.2 / 4 * -0.4)


def test_digests_tell_states_apart():
    proposal = Proposal(walk_from(GRID, (0, 0), "D"), False)
    states = [START, State(GRID, (1, 0)), dataclasses.replace(START, proposal=proposal)]
    assert len({digest(s) for s in states}) == 3
    assert digest(State(GRID, (0, 0))) == digest(START)


@pytest.mark.parametrize("turns", [1, 4, 12])
def test_failing_never_pays_more_than_solving(turns):
    """Search: rewards of many long lists from everywhere, then the best failed and the worst solved
    episode over all turns, by dynamic programming on what the search saw."""
    task = PlanPath(size=4, workflow=Workflow(("scout", "mover"), turns=turns))
    rng = random.Random(0)
    for index in range(5):
        instance = task.instance("train", index)
        cells = list(distances(instance))
        best: dict = {}  # (cell, end) -> the best reward seen; end None is an invalid answer
        worst: dict = {}
        scout: dict = {}  # cell -> (worst, best) reward of a proposal
        for cell in cells:
            for _ in range(400):
                moves = "".join(rng.choices("UDLR?", k=rng.choice((1, 2, 3, 5, 9, 60, 400))))
                text = f"[{moves}]" if rng.random() < 0.98 else "nothing"
                step = task.act(State(instance, cell), "mover", text)
                value = step.reward.mixed(1.0)
                edge = cell, step.state.position
                best[edge] = max(best.get(edge, -9.0), value)
                worst[edge] = min(worst.get(edge, 9.0), value)
                value = task.act(State(instance, cell), "scout", text).reward.mixed(1.0)
                low, high = scout.get(cell, (9.0, -9.0))
                scout[cell] = min(low, value), max(high, value)
        failed = dict.fromkeys(cells, 0.0)
        solved = dict.fromkeys(cells, float("inf"))
        solved[instance.goal] = 0.0
        for _ in range(turns):
            failed = {
                cell: scout[cell][1]
                + max(
                    best[edge] + failed[edge[1]]
                    for edge in best
                    if edge[0] == cell and edge[1] != instance.goal
                )
                for cell in cells
                if cell != instance.goal
            }
            solved = {
                cell: scout[cell][0] + min(worst[edge] + solved[edge[1]] for edge in worst if edge[0] == cell)
                for cell in cells
                if cell != instance.goal
            } | {instance.goal: 0.0}
        assert failed[instance.start] < solved[instance.start]


def test_demonstrations_are_lists_imperfect_on_purpose():
    perfect = PlanPath(demonstration_error=0.0, demonstration_moves=99)
    rng = random.Random(0)
    for index in range(30):
        instance = perfect.instance("train", index)
        state = perfect.initial(instance)
        assert perfect.act(state, "mover", perfect.demonstration(state, "mover", rng)).solved
    solved = [
        TASK.act(s, "mover", TASK.demonstration(s, "mover", rng)).solved
        for s in (TASK.initial(TASK.instance("train", i)) for i in range(300))
    ]
    assert 0.05 < sum(solved) / 300 < 0.6


def test_a_demonstrated_mover_repeats_a_proposal_that_arrives():
    state = TASK.act(START, "scout", "[LDDRR]").state
    assert TASK.demonstration(state, "mover", random.Random(0)) == "[ 00 00 10 20 21 22]"
    drawn = dataclasses.replace(TASK, view="symbols")
    assert drawn.demonstration(state, "mover", random.Random(0)) == "[LDDRR]"


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"size": 1}, r"PlanPath.size = 1: must be at least 2"),
        ({"size": 11}, r"PlanPath.view = 'cells': names cells by one digit"),
        ({"view": "picture"}, r"PlanPath.view"),
        ({"obstacles": 1.0}, r"PlanPath.obstacles"),
        ({"obstacles": 0.999}, r"no solvable 6x6 grid"),
        ({"proposal": 1.0}, r"failing could pay 2.1 and solving"),
        ({"illegal": -0.1}, r"PlanPath.illegal"),
        ({"workflow": Workflow(("scout",))}, r"the last role decides: it must be mover"),
        ({"workflow": Workflow((("scout", "mover"),))}, r"must see what was proposed"),
        ({"prompts": "nowhere"}, r"PlanPath.prompts = 'nowhere': no prompts in 'nowhere'"),
        ({"workflow": Workflow(("tool", "mover"))}, r"no template tool in .*plan_path/short"),
        ({"workflow": Workflow(("mover", "judge"))}, r"not \['judge'\]"),
    ],
)
def test_refuses(wrong, says):
    with pytest.raises(ValueError, match=says):
        PlanPath(**wrong)


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="split 'dev'"):
        TASK.instance("dev", 0)


@pytest.mark.parametrize("wrong", [{"turns": 0}, {"order": ()}, {"order": (("a", "a"),)}, {"order": "mover"}])
def test_workflow_refuses(wrong):
    with pytest.raises(ValueError, match=r"Workflow\."):
        Workflow(**({"order": ("a",)} | wrong))
