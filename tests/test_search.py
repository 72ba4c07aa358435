"""The task of search: who speaks when, what is paid, made-up worlds, and what is refused."""

import dataclasses
import random
import re

import pytest

from atgrpo_jax.common.types import Outcome
from atgrpo_jax.run.gin_config import load
from atgrpo_jax.tasks.course import Course
from atgrpo_jax.tasks.search import worlds
from atgrpo_jax.tasks.search.corpus import Corpus, Document
from atgrpo_jax.tasks.search.questions import Problem
from atgrpo_jax.tasks.search.search import Search, State, read_tag, topic, words
from atgrpo_jax.tasks.workflow import Workflow
from atgrpo_jax.tokens.tokens import TinyTokenizer
from atgrpo_jax.tools.check_task import check, check_experiment
from atgrpo_jax.tools.hostile import EVALUATES, HOSTILE, SHAPES

TASK = Search()
ALONE = Search(workflow=Workflow(("agent",), turns=4))
FACTS = {"boss of Ada": "Bob", "mother of Bob": "Cyd", "friend of Eve": "Dan"}
CORPUS = Corpus(Document(name, name, f"the {name} is {other}") for name, other in FACTS.items())
TWO = State(Problem("who is the mother of the boss of Ada", ("Cyd",), (0, 1), CORPUS))


def played(task, state, *said):
    """Plays what each role says in turn; returns the steps, and how the episode ended."""
    course = Course(task, state)
    steps = []
    texts = iter(said)
    while speakers := course.next():
        for role in speakers:
            steps.append((role, task.act(course.state, role, next(texts))))
            course.take(steps[-1][1])
    assert next(texts, None) is None
    return steps, course.end


def paid(steps):
    return [(role, step.reward.team, dict(step.reward.parts)) for role, step in steps]


def near(parts):
    return {name: pytest.approx(value) for name, value in parts.items()}


FORM = 0.05 / 3


def test_a_team_that_finds_both_documents():
    steps, end = played(
        TASK, TWO,
        "<ask>boss of Ada</ask>", "<search>boss Ada</search>",
        "<ask> mother of Bob", "so: <search> mother Bob",
        "<done>", "<answer>The Cyd.</answer>",
    )  # fmt: skip
    assert end == "solved"
    assert paid(steps) == [
        ("planner", 0.0, near({"form": FORM, "asks": 0.4 / 3 / 2})),
        ("searcher", 0.0, near({"form": FORM, "finds": 0.25})),
        ("planner", 0.0, near({"form": FORM, "asks": 0.4 / 3 / 2})),
        ("searcher", 0.0, near({"form": FORM, "finds": 0.25})),
        ("planner", 0.0, near({"form": FORM, "complete": 0.1})),
        ("reasoner", 1.0, near({"form": FORM, "supported": 0.1})),
    ]
    last = steps[-1][1].state
    assert last.asks == ("boss of Ada", "mother of Bob") and last.queries == ("boss Ada", "mother Bob")
    assert (last.found, last.turn, last.answer) == ((0, 1), 2, "The Cyd.")


def test_gains_are_paid_once_and_the_reasoner_speaks_in_the_last_turn():
    """The planner's question is as good as the searcher's query; a document that was found gains nothing."""
    steps, end = played(
        TASK, TWO,
        "<ask> boss of Ada", "<search> boss of Ada",
        "<ask> boss of Ada", "<search> boss of Ada",
        "<ask> friend of Eve", "nothing", "<answer> Bob",
    )  # fmt: skip
    assert end == "ended"
    gains = [parts.get("finds", parts.get("asks")) for _, _, parts in paid(steps)]
    assert gains == [pytest.approx(0.4 / 6), 0.25, 0.0, 0.0, 0.0, 0.0, None]
    assert steps[5][1].outcome == Outcome.INVALID and steps[5][1].reward.parts["form"] == 0.0
    # Bob is not the answer, but stands in what was found.
    assert paid(steps)[-1] == ("reasoner", 0.0, near({"form": FORM, "supported": 0.1}))


def test_stopping_too_early_costs():
    steps, end = played(TASK, TWO, "<done>", "Cyd, surely")
    assert paid(steps)[0] == ("planner", 0.0, near({"form": FORM, "complete": -0.1}))
    assert paid(steps)[1] == ("reasoner", 0.0, {"form": 0.0, "supported": 0.0})
    assert end == "ended" and [role for role, _ in steps] == ["planner", "reasoner"]


def test_roles_may_be_left_out():
    steps, end = played(ALONE, TWO, "<search> boss of Ada", "<search> mother of Bob", "<answer> Cyd")
    assert end == "solved" and [step.reward.team for _, step in steps] == [0, 0, 1]
    assert [step.reward.parts.get("finds") for _, step in steps] == [0.25, 0.25, None]
    pair = Search(workflow=Workflow(("planner", "reasoner"), turns=2))
    steps, end = played(pair, TWO, "<ask> boss of Ada", "<ask> mother of Bob", "<answer> Cyd")
    assert end == "solved" and steps[-1][1].state.found == (0, 1)
    pair = Search(workflow=Workflow(("searcher", "reasoner"), turns=2))
    steps, end = played(pair, TWO, "<search> boss of Ada", "<search> mother of Bob", "<answer> Cyd")
    assert end == "solved" and [role for role, _ in steps] == ["searcher", "searcher", "reasoner"]
    floor = Search(workflow=Workflow(("reasoner",), turns=1))
    assert played(floor, TWO, "<answer> Cyd")[1] == "solved"
    assert floor.initial(TWO.problem).found == ()
    ceiling = dataclasses.replace(floor, given=True)
    assert ceiling.initial(TWO.problem).found == (0, 1)
    assert "the boss of Ada is Bob" in ceiling.prompt(ceiling.initial(TWO.problem), "reasoner")[0]["content"]


def test_an_agent_that_never_answers_has_failed():
    steps, end = played(ALONE, TWO, *["<search> boss of Ada"] * 4)
    assert end == "turn_limit" and not any(step.done for _, step in steps)


def test_searchers_in_several_seats_search_at_once():
    task = Search(workflow=Workflow(("searcher", "reasoner"), turns=1, seats={"searcher": 2}))
    steps, end = played(task, TWO, "<search> mother of Bob", "<search> boss of Ada", "<answer> Cyd")
    assert end == "solved" and steps[-1][1].state.found == (1, 0)
    assert [role for role, _ in steps] == ["searcher0", "searcher1", "reasoner"]


def test_an_answer_that_is_nearly_right_is_paid_in_part():
    problem = Problem("who?", ("Ada Mary Bly", "A. M. Bly"), (0,), CORPUS)
    task = Search(partial=0.25, workflow=Workflow(("reasoner",), turns=1))
    steps, end = played(task, State(problem), "<answer> Mary Bly")
    assert end == "ended" and steps[0][1].reward.team == pytest.approx(0.25 * 2 * 2 / 5)
    assert played(task, State(problem), "<answer> a M Bly")[1] == "solved"
    assert played(TASK, State(problem), "<done>", "<answer> Mary Bly")[0][1][1].reward.team == 0.0


@pytest.mark.parametrize(
    ("text", "tags", "found"),
    [
        ("<ask>who?</ask>", ("ask", "done"), ("ask", "who?")),
        ("<ask> a </ask> or <ask> b", ("ask", "done"), ("ask", "b")),
        ("<ask> a </ask> <done>", ("ask", "done"), ("done", "")),
        ("<search> a", ("ask", "done"), ("", "")),
        ("<ask>  </ask>", ("ask", "done"), ("", "")),
        ("ask> a", ("ask",), ("", "")),
        ("", ("ask",), ("", "")),
        ("<search> a < b </search> x", ("search", "answer"), ("search", "a < b")),
        ("<ask>" + "x" * 5000, ("ask",), ("ask", "x" * 1000)),
    ],
)
def test_what_a_role_says(text, tags, found):
    assert read_tag(text, tags) == found


@pytest.mark.parametrize(("task", "role"), [(TASK, "planner"), (TASK, "searcher"), (ALONE, "agent")])
def test_no_query_raises(task, role):
    tag = "ask" if role == "planner" else "search"
    for text in (*HOSTILE, *EVALUATES, *(shape * 9999 for shape in SHAPES)):
        said = f"<{tag}>{text}"
        assert task.act(TWO, role, said) == task.act(TWO, role, said)
        assert set(CORPUS.search(text, 2)) <= {0, 1, 2}


def follow(problem):
    """The answer to a made-up question, found word by word in the texts of its world."""
    facts = dict(re.fullmatch(r"(.*) is (\w+)", one.text).groups() for one in problem.corpus.documents)
    *relations, person = problem.question.removeprefix("who is ").split(" of ")
    for relation in reversed(relations):
        person = facts[f"{relation} of {person}"]
    return person


def test_made_up_questions_have_the_answer_that_their_world_gives():
    for split in ("train", "test"):
        for index in range(40):
            problem = TASK.instance(split, index)
            assert problem.answers == (follow(problem),)
            assert len(problem.corpus.documents) == 12 * 4
            hops = problem.question.count("the ")
            assert len(problem.gold) == hops == len(set(problem.gold))
            texts = [problem.corpus.documents[number].text for number in problem.gold]
            assert texts[0].startswith(f"the {problem.question.rpartition('the ')[2]} is ")
            assert texts[-1].endswith(f" is {problem.answers[0]}")
            people = [re.findall(r"of (\w+) is", text)[0] for text in texts] + [*problem.answers]
            assert len(set(people)) == hops + 1  # else the question has a shorter way
    hops = {TASK.instance("train", index).question.count("the ") for index in range(40)}
    assert hops == {1, 2, 3}
    assert Search(hops=(2,)).instance("train", 0).question.count("the ") == 2


def test_worlds_are_pure_and_splits_share_none():
    made = {split: [TASK.instance(split, index) for index in range(40)] for split in ("train", "validation")}
    worlds.made_up.cache_clear()
    assert made["train"] == [Search().instance("train", index) for index in range(40)]
    assert not {p.corpus for p in made["train"]} & {p.corpus for p in made["validation"]}
    assert Search(seed=1).instance("train", 0) != made["train"][0]
    with pytest.raises(ValueError, match="split 'dev'"):
        TASK.instance("dev", 0)


def test_the_question_that_a_document_is_about_finds_it():
    """Also in a world in which the names stand in other documents as often."""
    for index in range(40):
        corpus = TASK.instance("train", index).corpus
        for number, document in enumerate(corpus.documents):
            assert corpus.search(topic(document), 1) == (number,)


@pytest.mark.parametrize("task", [TASK, ALONE], ids=["team", "agent"])
def test_demonstrations_without_errors_solve_every_question(task):
    sure = dataclasses.replace(task, demonstration_error=0.0)
    for index in range(30):
        course = Course(sure, sure.initial(sure.instance("train", index)))
        while speakers := course.next():
            for role in speakers:
                text = sure.demonstration(course.state, role, random.Random(index))
                course.take(sure.act(course.state, role, text))
        assert course.end == "solved"


def test_one_query_does_for_one_hop_only():
    """The question itself as the query, and the last word of what it finds as the answer."""
    for hops, least, most in ((1, 40, 40), (2, 0, 10), (3, 0, 10)):
        task = Search(hops=(hops,), workflow=Workflow(("searcher", "reasoner"), turns=1))
        solved = 0
        for index in range(40):
            problem = task.instance("test", index)
            found = problem.corpus.documents[problem.corpus.search(problem.question, 1)[0]]
            said = f"<search> {problem.question}", f"<answer> {found.text.split()[-1]}"
            solved += played(task, task.initial(problem), *said)[1] == "solved"
        assert least <= solved <= most


def test_prompts_and_answers_are_short_for_a_tiny_model():
    tokenizer = TinyTokenizer(words=words())
    state = dataclasses.replace(TASK.initial(TASK.instance("train", 1)), found=(0, 1, 2))
    assert len(tokenizer.prompt_ids(TASK.prompt(state, "reasoner"))) <= 3 + 1 + 6 + 3 * 6
    assert len(tokenizer.answer_ids("<ask> the boss of Ada")) == 1 + 2 + 1


def test_what_is_shown_is_bounded():
    """Of a document its beginning, of what others say both ends."""
    long = Corpus([Document("1", "t" * 5000, "x " * 5000)])
    state = State(
        Problem("q" * 9000, ("x",), (0,), long), asks=("a" * 900,), queries=("b" * 900,), found=(0,)
    )
    for role in ("planner", "searcher", "reasoner"):
        shown = Search(prompts="search/full").prompt(state, role)[0]["content"]
        assert len(shown) < 2000 + 400 + 3 * 200 + 1200


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (
            {"workflow": Workflow(("searcher",))},
            "roles are, in this order, one of: planner, searcher, reasoner;",
        ),
        ({"workflow": Workflow(("reasoner", "planner"))}, "roles are, in this order"),
        ({"workflow": Workflow((("planner", "searcher"), "reasoner"))}, "a stage of a turn for each role"),
        ({"workflow": Workflow(("reasoner",), seats={"reasoner": 2})}, "only the searcher may have several"),
        (
            {"asks": 0.8},
            r"Search.asks = 0.8: failing could pay 0.95 and solving only 0.9; lower it, or partial",
        ),
        ({"partial": 0.4, "asks": 0.2}, "Search.finds = 0.5: failing could pay 1.05 and solving only 1"),
        ({"form": -1.0}, "must not be negative"),
        ({"people": 30}, "must be 5 to 20"),
        ({"relations": 7}, "must be 1 to 6"),
        ({"hops": (4,)}, "each must be 1, 2 or 3"),
        ({"results": 0}, "must be at least 1"),
        ({"corpus": "a.jsonl"}, "needs questions: set Search.files"),
        ({"pool": True}, "needs questions: set Search.files"),
        ({"demonstration_error": 2.0}, r"must be in \[0, 1\]"),
    ],
)
def test_a_search_refuses(wrong, says):
    with pytest.raises(ValueError, match=says):
        Search(**wrong)


@pytest.mark.parametrize(
    "task",
    [
        Search(prompts="search/full", workflow=Workflow(("agent",), turns=2), results=2, partial=0.3),
        Search(prompts="search/full", workflow=Workflow(("searcher", "reasoner"), seats={"searcher": 2})),
    ],
    ids=["agent", "seats"],
)
def test_search_keeps_the_contract(task):
    assert check(task, instances=2, episodes=20) == []


def test_the_team_of_the_gin_file_keeps_the_contract():
    assert check_experiment(load("search.gin"), 2) == []
