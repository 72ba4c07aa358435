"""Games that are played step by step: replays, rewards and seats, by hand; then games of Gymnasium."""

import dataclasses
import random
import sys
import types
from typing import Any, ClassVar

import pytest

from atgrpo_jax.common.types import Outcome
from atgrpo_jax.tasks.course import Course
from atgrpo_jax.tasks.environments import gymnasium_games
from atgrpo_jax.tasks.environments.gymnasium_games import FrozenLake, Gymnasium, _cells
from atgrpo_jax.tasks.environments.rules import BadAction, Replays, Rules, Scene
from atgrpo_jax.tasks.environments.stepwise import Start, State, StepWise
from atgrpo_jax.tasks.environments.textarena_games import TextArena
from atgrpo_jax.tasks.workflow import Workflow
from atgrpo_jax.tools.check_task import check

TURNS = Workflow(("player",), turns=4)
ADVISED = Workflow(("adviser", "player"), turns=4)


class Counting(list):
    """A game's moves; counts how many games were begun."""

    begun = 0


@dataclasses.dataclass(frozen=True)
class Climb(Rules):
    """From 0, "up" and "down" move by one; 3 solves it, -1 ends it. A value is a third of the height."""

    def start(self, seed: int) -> Any:
        Counting.begun += 1
        return Counting([seed])

    def step(self, game, action):
        if action == "jump":
            raise BadAction("too high")
        game.append(1 if action == "up" else -1)

    def scene(self, game):
        height = sum(game[1:])
        return Scene(f"seed {game[0]} at {height}", 0, (max(height, 0) / 3,), height in (3, -1), height == 3)

    def read(self, text):
        return text.strip() if text.strip() in ("up", "down", "jump") else None

    def choices(self, game):
        return ["up", "down"]

    def best(self, game):
        return "up"


class Uncopied(Climb):
    def start(self, seed):
        game = super().start(seed)
        game.lock = (one for one in ())  # generators cannot be copied
        return game


class Shared(Climb):
    """Its copies share the list of moves."""

    def start(self, seed):
        return Shallow(super().start(seed))

    def step(self, game, action):
        super().step(game.moves, action)

    def scene(self, game):
        return super().scene(game.moves)


@dataclasses.dataclass
class Shallow:
    moves: Any

    def __deepcopy__(self, memo):
        return Shallow(self.moves)


CLIMB = StepWise(Climb(), TURNS)


def test_rewards_of_a_player():
    """turns = 4, progress = 0.3, invalid = 0.1."""
    up = CLIMB.act(State(7), "player", "up")
    assert up.state == State(7, ("up",)) and up.reward.team == 0 and not up.done
    assert up.reward.parts == {"progress": pytest.approx(0.1)}
    back = CLIMB.act(up.state, "player", "down")
    assert back.reward.parts == {"progress": pytest.approx(-0.1)}
    top = CLIMB.act(State(7, ("up", "up")), "player", "up")
    assert top.reward.team == 1 and top.done and top.solved
    fallen = CLIMB.act(State(7), "player", "down")
    assert fallen.done and not fallen.solved and fallen.reward.local == 0


@pytest.mark.parametrize("text", ["fly", "", "jump"])
def test_what_is_no_action_costs_a_turn_and_changes_no_game(text):
    step = CLIMB.act(State(7, ("up",)), "player", text)
    assert step.reward.parts == {"invalid": -0.025} and step.outcome is Outcome.INVALID
    assert step.state == State(7, ("up",), refused=text) and not step.done


def test_an_adviser_is_paid_for_what_it_says_and_the_player_hears_it():
    """advice = 0.1, turns = 4: a step up is worth a third, and the last one 1 more."""
    task = StepWise(Climb(), ADVISED)
    said = task.act(State(7), "adviser", " up ")
    assert said.reward.parts == {"advice": pytest.approx(0.1 / 4 / 3)} and said.reward.team == 0
    assert said.state == State(7, advice="up") and not said.done
    assert task.prompt(said.state, "player")[0]["content"] == "player\nseed 7 at 0\nadviser up"
    assert task.act(said.state, "player", "up").state == State(7, ("up",))
    last = task.act(State(7, ("up", "up")), "adviser", "up")
    assert last.reward.parts == {"advice": pytest.approx(0.1 / 4 * 4 / 3)} and not last.done
    vague = task.act(State(7), "adviser", "hm")
    assert vague.reward.parts == {"invalid": -0.025} and vague.state.advice == "hm"


def test_a_game_goes_on_from_a_copy_or_else_from_its_start():
    copied = Replays(Climb())
    assert copied.copies
    Counting.begun = 0
    for count in range(1, 4):
        assert copied.scene(5, ("up",) * count).text == f"seed 5 at {count}"
    assert Counting.begun == 1
    for rules in (Uncopied(), Shared()):
        replayed = Replays(rules)
        assert not replayed.copies
        Counting.begun = 0
        assert [replayed.scene(5, ("up",) * n).text for n in (1, 2)] == ["seed 5 at 1", "seed 5 at 2"]
        assert Counting.begun == 2


def test_siblings_share_nothing_and_few_games_are_kept():
    replays = Replays(Climb(), kept=2)
    assert replays.scene(5, ("up", "up")).text == "seed 5 at 2"
    assert replays.scene(5, ("up", "down")).text == "seed 5 at 0"
    for seed in range(9):
        assert replays.scene(seed, ("up",)).text == f"seed {seed} at 1"
    assert len(replays._kept) == 2


@dataclasses.dataclass(frozen=True)
class Moody(Climb):
    """The second step of a game depends on how many games were played before."""

    def scene(self, game):
        scene = super().scene(game)
        return dataclasses.replace(scene, text=f"{Counting.begun}") if len(game) == 3 else scene


def test_a_game_that_is_not_deterministic_is_refused_with_the_step():
    says = (
        "StepWise.game = Moody.*is not deterministic under its seed: with seed 0 its text differs at step 2"
    )
    with pytest.raises(ValueError, match=says):
        StepWise(Moody(), TURNS)


class Nim(Rules):
    """Two players take one or two of three; who takes the last one wins."""

    seats: ClassVar[int] = 2

    def start(self, seed):
        return []

    def step(self, game, action):
        if int(action) > 3 - sum(game):
            raise BadAction("too many")
        game.append(int(action))

    def scene(self, game):
        left = 3 - sum(game)
        winner = (len(game) - 1) % 2
        values = [0.0, 0.0]
        if not left:
            values[winner] = 1.0
        return Scene(f"{left} left", len(game) % 2, tuple(values), not left, not left)

    def read(self, text):
        return text if text in ("1", "2") else None

    def choices(self, game):
        return ["1"]


@pytest.mark.parametrize(
    "workflow",
    [Workflow(("player",), turns=4, seats={"player": 2}), Workflow(("player0", "player1"), turns=4)],
    ids=["one policy", "two"],
)
def test_two_players_take_turns_and_what_one_wins_is_not_the_teams(workflow):
    """invalid = 0.1 is the team's for a game that ended by its rules, whoever won."""
    nim = StepWise(Nim(), workflow, apart="seed")
    course = Course(nim, nim.initial(Start(1)))
    spoken = []
    for text in ("1", "5", "1", "1"):
        (role,) = course.next()
        step = nim.act(course.state, role, text)
        spoken.append((role, step.reward.team, round(step.reward.local, 6)))
        course.take(step)
    assert spoken == [
        ("player0", 0.0, 0.0), ("player1", 0.0, -0.025), ("player1", 0.0, 0.0),
        ("player0", 0.1, 0.3),
    ]  # fmt: skip
    assert course.next() == () and course.end == "solved"


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"workflow": ADVISED, "game": Nim()}, "this game has 2 seats: expected player player"),
        ({"workflow": Workflow(("player", "adviser"))}, "expected player, or adviser player"),
        ({"workflow": Workflow((("adviser", "player"),))}, "expected player, or adviser player"),
        ({"progress": 0.95}, r"progress \+ invalid must be at most 1"),
        ({"advice": 0.31}, r"3 \* advice \+ invalid must be at most 1"),
    ],
)
def test_it_refuses(wrong, says):
    with pytest.raises(ValueError, match=says):
        StepWise(**({"game": Climb()} | wrong))


@pytest.mark.parametrize("task", [CLIMB, StepWise(Climb(), ADVISED)], ids=["player", "adviser"])
def test_a_game_by_hand_keeps_the_contract(task):
    assert check(task, instances=2, episodes=10) == []


def test_two_players_keep_the_contract():
    nim = StepWise(Nim(), Workflow(("player",), turns=4, seats={"player": 2}), apart="seed")
    assert check(nim, instances=2, episodes=10) == []


# Gymnasium


def test_a_frozen_lake_by_hand():
    lake = FrozenLake(size=3, holes=0.3)
    task = StepWise(lake, TURNS)
    scenes = {task._replays.scene(seed, ()).text for seed in range(40)}
    assert len(scenes) > 5 and "3x3 holes 01 21\nat 00" in scenes
    seed = next(s for s in range(40) if task._replays.scene(s, ()).text == "3x3 holes 01 21\nat 00")
    # The way is down, right, right, down. No cell has a longer one: each step is a fifth, as is the start.
    assert task._replays.scene(seed, ()).values == (1 - 4 / 5,)
    for count, (action, at) in enumerate((("down", 10), ("right", 11), ("right", 12)), 1):
        actions = ("down", "right", "right")[:count]
        scene = task._replays.scene(seed, actions)
        assert scene.text.endswith(f"at {at}") and scene.values == (1 - (4 - count) / 5,)
        assert not scene.done
        assert task._replays.best(seed, actions[:-1]) == action
    assert task._replays.scene(seed, ("down", "right", "right", "down")).solved
    hole = task._replays.scene(seed, ("right",))
    assert hole.done and not hole.solved and hole.values == (0.0,)


def test_no_cell_of_a_frozen_lake_is_worth_as_little_as_a_hole():
    lake = FrozenLake()
    for seed in range(30):
        table = lake.start(seed)
        worth = {}
        for place, kind in enumerate("".join(_cells(table.env))):
            table.observation = place
            worth[place] = kind, lake.value(table)
        assert all((value == 0) == (kind == "H") for kind, value in worth.values() if kind != "F")
        reached = [value for kind, value in worth.values() if kind == "F" and value]
        assert reached and min(reached) > 0 and max(reached) < worth[15][1] == 1


def test_the_last_action_that_is_named_is_taken():
    lake = FrozenLake()
    assert lake.read("Not left: the hole is there. So: Down!") == "down"
    assert lake.read("downward") is None and lake.read("") is None
    assert lake.read("up" + "." * 300) is None


def played(game):
    return StepWise(game, Workflow(("player",), turns=20), apart="seed")


def test_cliff_walking_ends_at_its_goal_alone():
    moves = ("up", "right", "down", "left")
    cliff = played(Gymnasium("CliffWalking-v1", actions=moves, success=-1.0, returns=(-100.0, 0.0)))
    assert cliff._replays.scene(3, ()).text.endswith("x  C  C  C  C  C  C  C  C  C  C  T")
    around = ("up", *["right"] * 11, "down")
    assert cliff._replays.scene(3, around).solved
    fallen = cliff._replays.scene(3, ("right",))
    assert not fallen.done and fallen.values == (0.0,)  # it costs 100, and leads back to the start


def test_blackjack_keeps_the_contract():
    """A hand is won or lost by chance; the observation is the hand, the dealer's card, and a usable ace."""
    game = Gymnasium("Blackjack-v1", actions=("stick", "hit"), view="observation", returns=(-1.0, 1.0))
    task = played(game)
    assert task._replays.scene(3, ()).text == "(7, 10, 0)"
    ends = [task._replays.scene(seed, ("stick",)) for seed in range(20)]
    assert {(scene.solved, scene.values[0]) for scene in ends} >= {(True, 1.0), (False, 0.0)}
    assert check(task, instances=1, episodes=5) == []


def test_taxi_is_solved_by_its_last_reward():
    """From seed 3 Taxi starts in cell (2, 0): what it draws marks the taxi."""
    taxi = Gymnasium("Taxi-v4", actions=("south", "north", "east", "west", "pickup", "dropoff"), success=20.0)
    table = taxi.start(3)
    assert not taxi.solved(table) and "<" in taxi.text(table)
    table.terminated, table.last, table.total = True, 20.0, 3.0
    assert taxi.solved(table) and taxi.value(table) == 1.0


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"id": "NoSuch-v1"}, "NoSuch"),
        ({"id": "Blackjack-v1", "actions": ("hit",), "view": "observation"}, "Blackjack-v1 has 2 actions"),
        ({"id": "Blackjack-v1", "actions": ("a b", "c"), "view": "observation"}, "names are different words"),
        ({"returns": (1.0, 1.0)}, "the worst must be below the best"),
    ],
)
def test_gymnasium_refuses(wrong, says):
    with pytest.raises(ValueError, match=says):
        Gymnasium(**wrong)


def test_without_the_packages_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(gymnasium_games, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'needs Gymnasium: pip install "atgrpo_jax\[gymnasium\]"'):
        FrozenLake()
    if "textarena" not in sys.modules:
        with pytest.raises(ValueError, match="needs TextArena: pip install textarena==0.7.4"):
            TextArena("TicTacToe-v0-train", players=2)


def test_splits_of_lakes_share_no_map():
    task = StepWise(FrozenLake(size=3), TURNS)
    shown = {split: {task._content(task.instance(split, i)) for i in range(4)} for split in ("train", "test")}
    assert not shown["train"] & shown["test"] and len(shown["test"]) == 4


# TextArena, with a stand-in that has its interface


class Arena:
    """Guess a digit that chance draws; "[bad]" is not understood, and the second such guess ends it."""

    def reset(self, num_players, seed):
        random.seed(seed)
        self.number = random.randrange(10)
        self.bad = 0
        self.rewards = None

    def get_observation(self):
        return 0, [(-1, "Guess [1] or [2].", None)]

    def step(self, action):
        if action == "[crash]":
            raise KeyError("crash")
        random.random()  # as games do, from everybody's numbers
        self.bad += action == "[bad]"
        if self.bad == 2:
            self.rewards = {0: -1}
        elif action == f"[{self.number}]":
            self.rewards = {0: 1}
        return self.rewards is not None, {}

    def close(self):
        return self.rewards, {0: {"invalid_move": self.bad == 2}}


def test_textarena_games_have_chance_of_their_own(monkeypatch):
    arena = types.ModuleType("textarena")
    arena.__spec__ = types.SimpleNamespace(name="textarena")
    arena.make = lambda id, **config: Arena()
    monkeypatch.setitem(sys.modules, "textarena", arena)
    random.seed(99)
    expected = random.Random(99).random()
    task = StepWise(TextArena("Guess-v0"), TURNS, apart="seed")
    state = task.initial(task.instance("train", 0))
    assert task.prompt(state, "player")[0]["content"] == "player\nGuess [1] or [2]."
    steps = [task.act(state, "player", f"[{digit}]") for digit in range(10)]
    assert sorted(step.solved for step in steps) == [False] * 9 + [True]
    assert task.act(state, "player", "[crash]").outcome is Outcome.INVALID
    lost = task.act(task.act(state, "player", "[bad]").state, "player", "[bad]")
    assert lost.done and not lost.solved and lost.reward.team == 0
    assert random.random() == expected
