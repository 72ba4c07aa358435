"""Makes up small worlds, of people and how they are related, and questions about them.

A world has a document for each fact, such as "the boss of Ada is Bob". Every question has a world
of its own, so nobody can know the facts without searching. A question of two hops is "who is the
mother of the boss of Ada".
"""

import functools
import random
from collections.abc import Sequence

from atgrpo_jax.common.types import seed_of
from atgrpo_jax.tasks.search.corpus import Corpus, Document
from atgrpo_jax.tasks.search.questions import Problem
from atgrpo_jax.tasks.splits import in_split

NAMES = (
    "Ada", "Bob", "Cyd", "Dan", "Eve", "Fay", "Gus", "Hal", "Ivy", "Jon",
    "Kim", "Leo", "Mia", "Ned", "Oda", "Pia", "Ray", "Sue", "Tom", "Una",
)  # fmt: skip
RELATIONS = ("mother", "boss", "friend", "doctor", "teacher", "neighbour")

Facts = dict[tuple[str, str], str]  # (relation, person) -> the other person


@functools.lru_cache(maxsize=256)
def made_up(hops: tuple[int, ...], people: int, relations: int, seed: int, split: str, index: int) -> Problem:
    """Returns a made-up question and its world. Its number of hops is one of ``hops``."""
    rng = random.Random(seed_of("search", hops, people, relations, seed, split, index))
    while True:
        facts = _world(NAMES[:people], RELATIONS[:relations], rng)
        chain = _chain(facts, rng.choice(NAMES[:people]), rng.choice(hops), RELATIONS[:relations], rng)
        if chain is None:
            continue
        problem = _problem(facts, chain)
        if in_split(problem, split):
            return problem


def _world(people: Sequence[str], relations: Sequence[str], rng: random.Random) -> Facts:
    facts = {}
    for relation in relations:
        for person in people:
            facts[relation, person] = rng.choice([other for other in people if other != person])
    return facts


def _chain(
    facts: Facts, person: str, hops: int, relations: Sequence[str], rng: random.Random
) -> list[tuple[str, str]] | None:
    """Returns the facts that a question follows, from a person on. Returns None if they come back
    to somebody, as the question would then have a shorter way."""
    chain = []
    met = {person}
    for _ in range(hops):
        relation = rng.choice(relations)
        chain.append((relation, person))
        person = facts[relation, person]
        if person in met:
            return None
        met.add(person)
    return chain


def _problem(facts: Facts, chain: Sequence[tuple[str, str]]) -> Problem:
    documents = []
    for (relation, person), other in facts.items():
        topic = f"the {relation} of {person}"
        documents.append(Document(topic, topic, f"{topic} is {other}"))
    asked = " of ".join(f"the {relation}" for relation, _ in reversed(chain))
    corpus = Corpus(documents)
    gold = tuple(corpus.numbers[f"the {relation} of {person}"] for relation, person in chain)
    return Problem(f"who is {asked} of {chain[0][1]}", (facts[chain[-1]],), gold, corpus)


def words() -> tuple[str, ...]:
    """Returns pieces of text for a ``TinyTokenizer``, so that prompts and answers are short."""
    return (
        "planner", "searcher", "reasoner", "agent", "<ask>", "<done>", "<search>", "<answer>",
        "who is", " is", " of", *(f" the {relation} of" for relation in RELATIONS),
        *(f" {name}" for name in NAMES),
    )  # fmt: skip
