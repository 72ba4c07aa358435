"""Defines breadth: many small problems at once, and one answer that is right if all of it is.

The same task is played by many workflows. The roles that one may have:

    aggregator    sees all problems and the answers so far, and writes all answers. Alone, it is a
                  single agent.
    worker        sees one problem, and answers it. It has a seat for each problem or, with a
                  planner, for each problem that the planner may name.
    planner       sees which problems are open, and names one for each worker. The others are silent.
    router        sees the next open problem, and names a specialist, who alone then speaks.
    reader, sorter, adder    specialists; see ``problems.SPECIALISTS``. One that does not know a
                  problem's kind is not told it.
"""

import dataclasses
import random
import re
import string
from typing import Any

from atgrpo_jax.common.checks import check_types, require
from atgrpo_jax.common.types import Message, Outcome, Reward
from atgrpo_jax.tasks import prompts
from atgrpo_jax.tasks.breadth.problems import KINDS, SPECIALISTS, Instance, State, made_up
from atgrpo_jax.tasks.protocol import Transition
from atgrpo_jax.tasks.texts import last_list
from atgrpo_jax.tasks.workflow import Workflow

AGGREGATOR, WORKER, PLANNER, ROUTER = "aggregator", "worker", "planner", "router"
LETTERS = string.ascii_lowercase  # the names of problems


@dataclasses.dataclass(frozen=True)
class Breadth:
    """Breadth is a task and its config in one. Local rewards, of which each is paid once a turn:

    aggregator            share * (share of its answers that are right)
    worker, specialist    right / turns * [its answer is right]
    planner               naming / turns * (share of the open problems that it names)
                          - waste / turns * (share of those that it names that are not open)
    router                naming / turns * [the specialist knows the problem's kind]

    An answer that cannot be read costs ``invalid / turns``. The team reward is 1 if all answers are
    right. It is paid for the answer that ends the episode: the aggregator's or, without an
    aggregator, the one after which no problem is open. A problem's first answer stays.

    A failed episode pays a role less than 1 - (the largest cost), and a solved one at least that:
    ``__post_init__`` refuses weights that would allow otherwise.
    """

    workflow: Workflow = Workflow(order=("worker", "aggregator"), turns=1, seats={"worker": 4})
    prompts: str = "breadth/short"  # a folder of templates; see tasks/prompts.py
    count: int = 4  # problems of an instance
    numbers: int = 3  # of a problem
    largest: int = 9  # number; sums are taken modulo the next one
    kinds: tuple[str, ...] = tuple(KINDS)  # of problems; see problems.KINDS
    # At most so many of the problems are open, the others come with their answers; 0 leaves all open.
    open: int = 0
    seed: int = 0  # other seeds make other problems
    right: float = 0.5
    share: float = 0.5
    naming: float = 0.5
    waste: float = 0.25
    invalid: float = 0.1
    demonstration_error: float = 0.3  # probability that anything demonstrated is random instead
    prompts_digest: str = dataclasses.field(init=False, default="")  # of the templates' content

    def __post_init__(self):
        check_types(self)
        object.__setattr__(self, "kinds", tuple(self.kinds))
        require(self, "count", 1 <= self.count <= len(LETTERS), f"must be from 1 to {len(LETTERS)}")
        require(self, "numbers", self.numbers >= 1, "must be at least 1")
        require(self, "largest", 1 <= self.largest < 10**9, "must be from 1 to 999999999")
        known = bool(self.kinds) and set(self.kinds) <= set(KINDS)
        require(self, "kinds", known, f"expected some of {', '.join(KINDS)}")
        require(self, "open", 0 <= self.open <= self.count, f"must be from 0 to count = {self.count}")
        require(self, "demonstration_error", 0 <= self.demonstration_error <= 1, "must be in [0, 1]")
        for name in ("right", "share", "naming", "waste", "invalid"):
            require(self, name, getattr(self, name) >= 0, "must not be negative")
        cost = max(self.waste, self.invalid)
        for name in ("right", "share", "naming"):
            rule = f"with costs of {cost:.3g}, failing could pay more than solving; at most {1 - cost:.3g}"
            require(self, name, getattr(self, name) + cost <= 1 + 1e-9, rule)
        self._check_workflow()
        prompts.settle(self, sorted(set(map(self._template, self.workflow.roles))))

    def _check_workflow(self) -> None:
        workflow = self.workflow
        roles = workflow.roles
        names = (AGGREGATOR, WORKER, PLANNER, ROUTER, *SPECIALISTS)
        unknown = sorted(set(roles) - set(names))
        require(self, "workflow", not unknown, f"roles are {', '.join(names)}, not {unknown}")
        rule = "of the roles only worker may have several seats"
        require(self, "workflow", set(workflow.seats) <= {WORKER}, rule)
        last = AGGREGATOR not in roles or workflow.stages[-1] == (AGGREGATOR,)
        require(self, "workflow", last, "an aggregator hears the others: it speaks last, and alone")
        asked = bool({AGGREGATOR, WORKER, *SPECIALISTS} & set(roles))
        require(self, "workflow", asked, "nobody answers")
        if PLANNER in roles:
            rule = f"a planner needs as many workers as may be open: {self._open}"
            require(self, "workflow", WORKER in roles and self._open <= self._seats <= self.count, rule)
        elif WORKER in roles:
            rule = f"there must be a worker for each problem: seats = {{'{WORKER}': {self.count}}}"
            require(self, "workflow", self._seats == self.count, rule)
        if ROUTER in roles:
            rule = "a router goes from problem to problem, a turn each, and an aggregator ends the first turn"
            require(self, "workflow", AGGREGATOR not in roles, rule)
            lacking = sorted(kind for kind in self.kinds if not self._knowing(kind))
            require(self, "workflow", not lacking, f"no specialist knows {', '.join(lacking)}")
            rule = f"a router sees one problem a turn: turns must be at least {self.count}"
            require(self, "workflow", workflow.turns >= self._open, rule)
        else:
            callers = not set(roles) & set(SPECIALISTS)
            require(self, "workflow", callers, "only a router calls specialists")
        once = AGGREGATOR not in roles or workflow.turns == 1
        require(self, "workflow", once, "an aggregator ends the first turn: turns must be 1")

    @property
    def _open(self) -> int:
        return self.open or self.count

    @property
    def _seats(self) -> int:
        return self.workflow.seats.get(WORKER, 1)

    def instance(self, split: str, index: int) -> Instance:
        """Returns made-up problems. Raises ValueError for an unknown split, or if there are none."""
        return made_up(
            self.kinds, self.numbers, self.largest, self.count, self._open, self.seed, split, index
        )

    def initial(self, instance: Instance) -> State:
        pairs = zip(instance.problems, instance.known, strict=True)
        return State(instance, tuple(problem.answer if known else None for problem, known in pairs))

    # Who speaks, and what they see

    def speaks(self, state: State, role: str) -> bool:
        name, _ = self.workflow.seat(role)
        if name in SPECIALISTS:
            return state.called == name
        return name == AGGREGATOR or self._place(state, role) is not None

    def prompt(self, state: State, role: str) -> list[Message]:
        name, _ = self.workflow.seat(role)
        place = self._place(state, role) or 0
        problem = self._shown(state, place)
        if name in SPECIALISTS and problem["kind"] not in SPECIALISTS[name]:
            problem["kind"] = ""
        values = {
            "speaker": name,
            "problem": problem,
            "problems": [self._shown(state, place) for place in range(self.count)],
            "seats": self._seats,
            "specialists": {one: SPECIALISTS[one] for one in self._specialists},
        }
        return prompts.render(self.prompts, self._template(name), values)

    @property
    def _specialists(self) -> list[str]:
        return [role for role in self.workflow.roles if role in SPECIALISTS]

    def _knowing(self, kind: str) -> list[str]:
        return [role for role in self._specialists if kind in SPECIALISTS[role]]

    def _template(self, role: str) -> str:
        return "specialist" if role in SPECIALISTS else role

    def _shown(self, state: State, place: int) -> dict[str, Any]:
        problem = state.instance.problems[place]
        return {"name": LETTERS[place], "answer": state.answers[place], **dataclasses.asdict(problem)}

    def _place(self, state: State, role: str) -> int | None:
        """Returns the place of the problem that a role is asked about; None if it is asked nothing."""
        name, number = self.workflow.seat(role)
        if name == WORKER and PLANNER in self.workflow.roles:
            seat = number or 0
            return state.named[seat] if seat < len(state.named) else None
        if name == WORKER:
            return number or 0 if state.answers[number or 0] is None else None
        return next(iter(state.open), None)

    # What their words do

    def act(self, state: State, role: str, text: str) -> Transition:
        name, _ = self.workflow.seat(role)
        if name == PLANNER:
            return self._plan(state, text)
        if name == ROUTER:
            return self._route(state, text)
        if name == AGGREGATOR:
            return self._conclude(state, text)
        return self._answer(state, role, text)

    def _plan(self, state: State, text: str) -> Transition:
        found = re.findall(r"\b[a-z]\b", _inside(text))
        places = [LETTERS.index(name) for name in dict.fromkeys(found)]
        named = tuple(place for place in places if place < self.count)[: self._seats]
        after = dataclasses.replace(state, named=named)
        if not named:
            return self._unreadable(after)
        open_ = state.open
        hit = len(set(named) & set(open_))
        parts = {
            "named": self._each(self.naming) * hit / max(1, len(open_)),
            "wasted": -self._each(self.waste) * (len(named) - hit) / len(named),
        }
        return Transition(after, Reward.of(0.0, **parts), Outcome.OK, False, False)

    def _route(self, state: State, text: str) -> Transition:
        named = [word for word in re.findall(r"[a-z]+", _inside(text)) if word in self._specialists]
        after = dataclasses.replace(state, called=named[-1] if named else "")
        if not named:
            return self._unreadable(after)
        place = self._place(state, ROUTER) or 0
        knows = state.instance.problems[place].kind in SPECIALISTS[after.called]
        reward = Reward.of(0.0, routed=self._each(self.naming) * knows)
        return Transition(after, reward, Outcome.OK, False, False)

    def _answer(self, state: State, role: str, text: str) -> Transition:
        after = dataclasses.replace(state, called="")
        found = self._read(text, 1)
        if found is None:
            return self._unreadable(after, *self._ended(after))
        place = self._place(state, role) or 0
        fills = state.answers[place] is None
        if fills:
            after = after.filled(place, found[0])
        done, solved = self._ended(after)
        right = self._each(self.right) * (found[0] == state.instance.problems[place].answer)
        return Transition(after, Reward.of(float(solved and fills), right=right), Outcome.OK, done, solved)

    def _conclude(self, state: State, text: str) -> Transition:
        found = self._read(text, self.count)
        if found is None:
            return self._unreadable(state, done=True)
        right = sum(map(int.__eq__, found, state.solution))
        solved = right == self.count
        reward = Reward.of(float(solved), share=self.share * right / self.count)
        return Transition(dataclasses.replace(state, answers=tuple(found)), reward, Outcome.OK, True, solved)

    def _ended(self, state: State) -> tuple[bool, bool]:
        """Returns whether all is answered and nobody is to conclude, and whether all of it is right."""
        done = AGGREGATOR not in self.workflow.roles and None not in state.answers
        return done, done and list(state.answers) == state.solution

    def _unreadable(self, after: State, done: bool = False, solved: bool = False) -> Transition:
        paid = Reward.of(0.0, invalid=-self._each(self.invalid))
        return Transition(after, paid, Outcome.INVALID, done, solved)

    def _each(self, amount: float) -> float:
        return amount / self.workflow.turns

    def _read(self, text: str, count: int) -> list[int] | None:
        """Returns the numbers of a text; None if there are not so many, or if one is too large."""
        found = re.findall(r"[0-9]+", _inside(text))
        if len(found) != count or max(map(len, found)) > len(str(self.largest)):
            return None
        return [int(number) for number in found]

    # The warm start

    def demonstration(self, state: State, role: str, rng: random.Random) -> str:
        name, _ = self.workflow.seat(role)
        place = self._place(state, role) or 0
        problem = state.instance.problems[place]
        if name == PLANNER:
            open_ = state.open
            said = [at for at in range(self.count) if (at in open_) != self._errs(rng)]
            return "".join(f" {LETTERS[at]}" for at in said[: self._seats] or [place])
        if name == ROUTER:
            return rng.choice(self._specialists if self._errs(rng) else self._knowing(problem.kind))
        if name == AGGREGATOR:
            known = zip(state.answers, state.solution, strict=True)
            return "".join(self._demonstrated(truth if said is None else said, rng) for said, truth in known)
        if name in SPECIALISTS and problem.kind not in SPECIALISTS[name]:
            return f" {rng.randint(0, self.largest)}"
        return self._demonstrated(problem.answer, rng)

    def _demonstrated(self, number: int, rng: random.Random) -> str:
        return f" {rng.randint(0, self.largest) if self._errs(rng) else number}"

    def _errs(self, rng: random.Random) -> bool:
        return rng.random() < self.demonstration_error


def _inside(text: str) -> str:
    """Returns what is in the last brackets of a text; all of it if it has none."""
    found = last_list(text)
    return found if isinstance(found, str) else text
