"""Rows of questions over passages, as the originals have them, become rows that the search task reads."""

import pytest
from shared_prepare import written

from atgrpo_jax.tasks.search.search import Search

# A row of hotpot_dev_distractor_v1.json: pairs, and sentences that begin with spaces.
HOTPOT = {
    "_id": "5a8b57f2", "question": "Who is the mother of Ada's boss?", "answer": "Cyd", "type": "bridge",
    "level": "hard", "supporting_facts": [["Ada", 0], ["Bob", 1], ["Ada", 1]],
    "context": [
        ["Tom", ["Tom is tall."]],
        ["Bob", ["Bob is old.", " His mother is Cyd."]],
        ["Ada", ["Her boss is Bob.", " She is young."]],
        ["Nobody", []],
    ],
}  # fmt: skip
# The same on a hub: mappings of lists.
HUB = HOTPOT | {
    "id": "5a8b57f2",
    "supporting_facts": {"title": ["Ada", "Bob", "Ada"], "sent_id": [0, 1, 1]},
    "context": {
        "title": [title for title, _ in HOTPOT["context"]],
        "sentences": [said for _, said in HOTPOT["context"]],
    },
}
WIKI = HOTPOT | {
    "_id": "8813f87c", "type": "compositional", "entity_ids": "Q1_Q2", "evidences_id": [],
    "evidences": [["Ada", "boss", "Bob"], ["Bob", "mother", "Cyd"]],
}  # fmt: skip
MUSIQUE = {
    "id": "2hop__460946_294723", "question": "Who is the spouse of the Green performer?",
    "answer": "Miquette", "answer_aliases": ["Miquette Giraudy", "Miquette"], "answerable": True,
    "paragraphs": [
        {"idx": 0, "title": "Stand", "paragraph_text": "An album.", "is_supporting": False},
        {"idx": 1, "title": "Miquette", "paragraph_text": "The spouse of Steve.", "is_supporting": True},
        {"idx": 2, "title": "Green", "paragraph_text": "Green is by Steve.", "is_supporting": True},
    ],
    "question_decomposition": [
        {"id": 460946, "question": "Green >> performer", "answer": "Steve", "paragraph_support_idx": 2},
        {"id": 294723, "question": "#1 >> spouse", "answer": "Miquette", "paragraph_support_idx": 1},
    ],
}  # fmt: skip


def problem_of(tmp_path, source, row):
    assert written(tmp_path, source, row) == (1, {})
    return Search(files={"test": str(tmp_path / "data" / "out.jsonl.gz")}).instance("test", 0)


@pytest.mark.parametrize(
    ("source", "row"),
    [("hotpotqa", HOTPOT), ("hotpotqa", HUB), ("2wikimultihopqa", WIKI)],
    ids=["own", "hub", "wiki"],
)
def test_hotpotqa_and_2wikimultihopqa(tmp_path, source, row):
    problem = problem_of(tmp_path, source, row)
    assert (problem.question, problem.answers) == ("Who is the mother of Ada's boss?", ("Cyd",))
    assert [(d.title, d.text) for d in problem.corpus.documents] == [
        ("Tom", "Tom is tall."),
        ("Bob", "Bob is old. His mother is Cyd."),
        ("Ada", "Her boss is Bob. She is young."),
    ]
    assert problem.gold == (2, 1)  # in the order of the facts


def test_musique(tmp_path):
    problem = problem_of(tmp_path, "musique", MUSIQUE)
    assert problem.answers == ("Miquette", "Miquette Giraudy")
    assert problem.gold == (2, 1)  # in the order of the hops
    assert problem.corpus.documents[2].text == "Green is by Steve."


def test_rows_that_are_left_out(tmp_path):
    """Those of test sets, and those whose documents are not there."""
    rows = [
        {name: HOTPOT[name] for name in ("_id", "question", "context")},
        HOTPOT | {"supporting_facts": [["Eve", 0]]},
        HOTPOT | {"supporting_facts": [["Nobody", 0]]},
        HOTPOT | {"context": "none"},
        HOTPOT | {"answer": "the"},
    ]
    assert written(tmp_path, "hotpotqa", HOTPOT, *rows) == (
        1,
        {
            "no answer: a test set": 1,
            "a supporting passage is not among its passages": 1,
            "a supporting passage is empty": 1,
            "not a row of hotpotqa": 2,
        },
    )
    rows = [MUSIQUE | {"answerable": False}, {n: v for n, v in MUSIQUE.items() if n != "answer"}, {"id": 3}]
    assert written(tmp_path, "musique", MUSIQUE, *rows)[1] == {
        "a question that cannot be answered": 1,
        "no answer: a test set": 2,
    }
