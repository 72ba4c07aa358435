"""Defines the task of search: a team answers questions of one or more hops from a corpus.

A ``planner`` asks for what is missing, or says that nothing is. A ``searcher`` writes the query. A
``reasoner`` answers from what was found. The planner may be left out, or the searcher: then the
planner's questions are the queries. An ``agent`` is all of them in one, and a reasoner alone
answers without searching.
"""

import dataclasses
import random
from collections.abc import Mapping, Sequence

from atgrpo_jax.common.checks import check_types, require
from atgrpo_jax.common.copies import absolute as absolute_path
from atgrpo_jax.common.types import Message, Outcome, Reward
from atgrpo_jax.tasks import prompts
from atgrpo_jax.tasks.data import absolute, files_of, pick, rows_of
from atgrpo_jax.tasks.protocol import Transition
from atgrpo_jax.tasks.search import worlds
from atgrpo_jax.tasks.search.corpus import Document, library
from atgrpo_jax.tasks.search.questions import Problem, Question, key, pooled, problem_in, read, read_corpus
from atgrpo_jax.tasks.search.scores import exact, f1, stands_in
from atgrpo_jax.tasks.workflow import Workflow

PLANNER, SEARCHER, REASONER, AGENT = ROLES = ("planner", "searcher", "reasoner", "agent")
TEAMS = ((PLANNER, SEARCHER, REASONER), (PLANNER, REASONER), (SEARCHER, REASONER), (REASONER,), (AGENT,))
# What each role may say.
TAGS = {PLANNER: ("ask", "done"), SEARCHER: ("search",), REASONER: ("answer",), AGENT: ("search", "answer")}
LONGEST = 1000  # characters of a query, a question or an answer that count
SHOWN = 200  # characters of a query or a question that others are shown
SHOWN_QUESTION = 2000  # characters of the question itself that are shown


@dataclasses.dataclass(frozen=True)
class State:
    problem: Problem
    turn: int = 0  # turns in which the searching is over
    asks: tuple[str, ...] = ()  # the planner's questions so far, one for each turn
    queries: tuple[str, ...] = ()
    found: tuple[int, ...] = ()  # numbers of the documents found so far, each once
    stopped: bool = False  # the planner said that nothing is missing
    answer: str | None = None

    @property
    def share(self) -> float:
        """Returns the share of the supporting documents that were found."""
        return len(set(self.found) & set(self.problem.gold)) / len(self.problem.gold)

    def after(self, query: str, most: int) -> "State":
        """Returns the state in which a query was answered, too."""
        found = (*self.found, *self.problem.corpus.search(query, most))
        return dataclasses.replace(self, queries=(*self.queries, query), found=tuple(dict.fromkeys(found)))


@dataclasses.dataclass(frozen=True)
class Search:
    """Search is a task and its config in one. Rewards:

    team       1 if the answer is right, else partial * (its F1)
    planner    asks / turns * [gain of its question, taken as the query]; as it stops: complete if
               all supporting documents were found, else -complete
    searcher   finds * [gain of its query]
    reasoner   supported if the answer stands in what was found
    agent      as the searcher for a query, and as the reasoner for an answer
    all        form / turns for a text that says what the role may say

    A gain is the number of supporting documents that are found and were not before, as a share of
    all. Those of the searcher sum to at most 1 over an episode. Those of the planner may not, as
    the searcher may not find what the planner asks for; so they are divided by the turns. A
    question is solved if the answer is right. ``__post_init__`` refuses weights with which a role
    could earn more by failing.

    The episode ends when the reasoner or the agent answers. The reasoner speaks once: when the
    planner has stopped, or in the last turn. If it gives no answer, that is a wrong one.
    """

    workflow: Workflow = Workflow(order=(PLANNER, SEARCHER, REASONER), turns=3)
    prompts: str = "search/short"  # a folder of templates; see tasks/prompts.py
    # Files of questions for each split, and of documents; see docs/search.md. If there are none,
    # worlds are made up.
    files: Mapping[str, str | tuple[str, ...]] = dataclasses.field(default_factory=dict)
    corpus: str | tuple[str, ...] = ()  # files of documents
    pool: bool = False  # the documents of all questions are one corpus
    hops: tuple[int, ...] = (1, 2, 3)  # of made-up questions
    people: int = 12  # in a made-up world
    relations: int = 4  # kinds of them, in a made-up world
    seed: int = 0  # other seeds make other problems
    results: int = 1  # most documents that a query finds
    snippet: int = 400  # characters of a document that are shown
    given: bool = False  # the supporting documents are there from the start: a ceiling
    partial: float = 0.0
    asks: float = 0.4
    complete: float = 0.1  # paid to the planner for stopping in time; see above
    finds: float = 0.5
    supported: float = 0.1  # paid for an answer that stands in what was found
    form: float = 0.05
    demonstration_error: float = 0.3  # probability that a demonstration is about another document
    prompts_digest: str = dataclasses.field(init=False, default="")  # of the templates' content

    def __post_init__(self):
        check_types(self)
        self._check_workflow()
        for name in ("results", "snippet"):
            require(self, name, getattr(self, name) >= 1, "must be at least 1")
        require(self, "people", 5 <= self.people <= len(worlds.NAMES), f"must be 5 to {len(worlds.NAMES)}")
        kinds = len(worlds.RELATIONS)
        require(self, "relations", 1 <= self.relations <= kinds, f"must be 1 to {kinds}")
        object.__setattr__(self, "hops", tuple(self.hops))
        require(self, "hops", self.hops != () and set(self.hops) <= {1, 2, 3}, "each must be 1, 2 or 3")
        require(self, "demonstration_error", 0 <= self.demonstration_error <= 1, "must be in [0, 1]")
        for name in ("partial", "asks", "complete", "finds", "supported", "form"):
            require(self, name, getattr(self, name) >= 0, "must not be negative")
        self._check_bound("asks", self.asks + self.complete, self.complete)
        self._check_bound("finds", self.finds + self.supported, 0.0)
        self._check_files()
        speakers = [self.workflow.seat(speaker)[0] for speaker in self.workflow.speakers]
        prompts.settle(self, speakers, next(iter(self.files), "train"))

    def _check_bound(self, name: str, most: float, cost: float) -> None:
        failed = self.partial + self.form + most
        solved = 1 - cost
        rule = f"failing could pay {failed:.3g} and solving only {solved:.3g}; lower it, or partial"
        require(self, name, failed <= solved + 1e-9, rule)

    def _check_workflow(self) -> None:
        roles = self.workflow.roles
        teams = "; ".join(", ".join(team) for team in TEAMS)
        require(self, "workflow", roles in TEAMS, f"roles are, in this order, one of: {teams}")
        stages = [{self.workflow.seat(speaker)[0] for speaker in stage} for stage in self.workflow.stages]
        require(self, "workflow", stages == [{role} for role in roles], "a stage of a turn for each role")
        several = set(self.workflow.seats) <= {SEARCHER}
        require(self, "workflow", several, "only the searcher may have several seats")

    def _check_files(self) -> None:
        try:
            library()
        except ImportError:
            require(self, "corpus", False, 'needs bm25s: pip install "atgrpo_jax[search]"')
        paths = (self.corpus,) if isinstance(self.corpus, str) else self.corpus
        object.__setattr__(self, "files", absolute(self.files))
        object.__setattr__(self, "corpus", tuple(map(absolute_path, paths)))
        require(self, "corpus", not self.corpus or self.files != {}, "needs questions: set Search.files")
        require(self, "pool", not (self.pool and self.corpus), "Search.corpus is one corpus already")
        require(self, "pool", not self.pool or self.files != {}, "needs questions: set Search.files")
        for split in self.files:
            for question in rows_of(files_of(self.files), split, read, key):
                if self.corpus or not question.documents:  # its own were looked at as it was read
                    self._problem(question)

    def instance(self, split: str, index: int) -> Problem:
        """Returns a question of the files, or a made-up one. Raises ValueError for a split without
        files, or one that names the line and field of a bad row; IndexError past the end of a
        held-out split's files."""
        if not self.files:
            return worlds.made_up(self.hops, self.people, self.relations, self.seed, split, index)
        return self._problem(pick(self.file_rows(split), self.seed, split, index))

    def file_rows(self, split: str) -> tuple[Question, ...]:
        return rows_of(files_of(self.files), split, read, key) if self.files else ()

    def _problem(self, question: Question) -> Problem:
        corpus = read_corpus(tuple(self.corpus)) if self.corpus else None
        if self.pool:
            corpus = pooled(files_of(self.files))
        return problem_in(question, corpus, self.pool)

    def initial(self, instance: Problem) -> State:
        return State(instance, found=instance.gold if self.given else ())

    # Play

    def speaks(self, state: State, role: str) -> bool:
        if self.workflow.seat(role)[0] != REASONER:
            return not state.stopped
        return state.stopped or state.turn == self.workflow.turns or self.workflow.roles == (REASONER,)

    def prompt(self, state: State, role: str) -> list[Message]:
        values = {
            "question": prompts.shortened(state.problem.question, SHOWN_QUESTION),
            "evidence": [self._shown(state.problem.corpus.documents[number]) for number in state.found],
            "ask": prompts.shortened(state.asks[-1], SHOWN) if state.asks else "",
            "queries": [prompts.shortened(query, SHOWN) for query in state.queries],
            "left": self.workflow.turns - state.turn,
            "team": self.workflow.roles,
        }
        return prompts.render(self.prompts, self.workflow.seat(role)[0], values)

    def act(self, state: State, role: str, text: str) -> Transition:
        kind = self.workflow.seat(role)[0]
        tag, said = read_tag(text, TAGS[kind])
        parts = {"form": self.form / self.workflow.turns * bool(tag)}
        outcome = Outcome.OK if tag else Outcome.INVALID
        if tag == "answer" or kind == REASONER:
            return self._answer(state, said, parts, outcome)
        after = state
        if tag == "done":
            complete = state.share == 1
            parts["complete"] = self.complete if complete else -self.complete
            after = dataclasses.replace(state, stopped=True)
        elif kind == PLANNER:
            found = state.after(said, self.results)
            parts["asks"] = self.asks / self.workflow.turns * (found.share - state.share)
            if SEARCHER not in self.workflow.roles:
                after = found
            after = dataclasses.replace(after, asks=(*state.asks, said))
        else:
            after = state.after(said, self.results)
            parts["finds"] = self.finds * (after.share - state.share)
        if role == self._closer:
            after = dataclasses.replace(after, turn=state.turn + 1)
        return Transition(after, Reward.of(0.0, **parts), outcome, False, False)

    def _answer(self, state: State, answer: str, parts: dict[str, float], outcome: Outcome) -> Transition:
        truths = state.problem.answers
        right = exact(answer, truths)
        team = 1.0 if right else self.partial * f1(answer, truths)
        shown = (self._shown(state.problem.corpus.documents[number]) for number in state.found)
        texts = (f"{document['title']} {document['text']}" for document in shown)
        parts["supported"] = self.supported * stands_in(answer, texts)
        after = dataclasses.replace(state, answer=answer)
        return Transition(after, Reward.of(team, **parts), outcome, True, right)

    def demonstration(self, state: State, role: str, rng: random.Random) -> str:
        """Returns what finds the next supporting document; or, if all were found, the answer."""
        kind = self.workflow.seat(role)[0]
        documents = state.problem.corpus.documents
        missing = [documents[number] for number in state.problem.gold if number not in state.found]
        wrong = rng.random() < self.demonstration_error
        other = rng.choice(documents)
        if kind == REASONER or (kind == AGENT and (not missing or state.turn == self.workflow.turns - 1)):
            answer = other.text.split()[-1] if wrong else rng.choice(state.problem.answers)
            return f"<answer> {answer}"
        if kind == PLANNER and not missing:
            return f"<ask> {topic(other)}" if wrong else "<done>"
        asked = topic(missing[0]) if missing else topic(other)
        if kind == SEARCHER and PLANNER in self.workflow.roles and state.asks and state.asks[-1]:
            asked = prompts.shortened(state.asks[-1], SHOWN)
        if wrong:
            asked = topic(other)
        return f"<ask> {asked}" if kind == PLANNER else f"<search> {asked}"

    @property
    def _closer(self) -> str:
        """Returns who speaks last in a turn before the reasoner does."""
        return [speaker for speaker in self.workflow.speakers if speaker != REASONER][-1]

    def _shown(self, document: Document) -> dict[str, str]:
        title = prompts.shortened(document.title, SHOWN)
        text = document.text
        return {"title": title, "text": text if len(text) <= self.snippet else f"{text[: self.snippet]}..."}


def read_tag(text: str, tags: Sequence[str]) -> tuple[str, str]:
    """Returns the last of these tags in a text, and what it encloses: "<ask>who?</ask>". The end of
    the text closes it, too. Returns "" twice if there is none, or if it encloses nothing; but
    "<done>" stands alone."""
    places = {text.rfind(f"<{tag}>"): tag for tag in tags}
    place = max(places)
    if place < 0:
        return "", ""
    tag = places[place]
    start = place + len(tag) + 2
    said = text[start : start + LONGEST].partition("</")[0].strip()
    return (tag, said) if said or tag == "done" else ("", "")


def topic(document: Document) -> str:
    """Returns what a document is about: its title, or else its first words."""
    return document.title or " ".join(document.text.split()[:8])


def words() -> tuple[str, ...]:
    """Returns pieces of text for a ``TinyTokenizer``, so that prompts and answers are short."""
    return worlds.words()
