"""Retrieval by hand, the same in every process; how answers are compared; files of questions."""

import json
import math
import os
import subprocess
import sys

import pytest

from atgrpo_jax.tasks.search import corpus as corpora
from atgrpo_jax.tasks.search.corpus import QUERY_WORDS, Corpus, Document, library
from atgrpo_jax.tasks.search.questions import read_corpus
from atgrpo_jax.tasks.search.scores import exact, f1, normalised, stands_in
from atgrpo_jax.tasks.search.search import Search

TEXTS = ("red apple", "green apple tree", "red red car", "blue car", "tall tree")
FIVE = Corpus(Document(str(number), "", text) for number, text in enumerate(TEXTS))


def bm25(times, length, documents_with):
    """The score of a word in one of the five texts, which have 12 words (Lucene's formula)."""
    idf = math.log(1 + (5 - documents_with + 0.5) / (documents_with + 0.5))
    return idf * times / (times + 1.5 * (0.25 + 0.75 * length / (12 / 5)))


def test_five_documents_by_hand():
    found = corpora._index(FIVE)
    scores = found._bm25.get_scores([found._ids["red"], found._ids["car"]])
    assert scores.tolist() == pytest.approx(
        [bm25(1, 2, 2), 0, bm25(2, 3, 2) + bm25(1, 3, 2), bm25(1, 2, 2), 0]
    )
    # 2 has both words. 0 and 3 have one each, and are equally long: the lower number comes first.
    assert FIVE.search("red car", 5) == (2, 0, 3)
    assert FIVE.search("car, RED!", 2) == (2, 0)
    assert FIVE.search("blue", 5) == (3,)
    assert FIVE.search("apple tree", 1) == (1,)


def test_ties_go_to_the_lower_number():
    same = Corpus(Document(str(number), "", "one two") for number in range(50))
    for most in (1, 7, 50, 99):
        assert same.search("two", most) == tuple(range(min(most, 50)))
    # Equal but for what the last digits of a logarithm may be.
    assert corpora._DECIMALS < 12


def test_titles_count():
    found = Corpus([Document("1", "Ada", "she is a boss"), Document("2", "", "Ada has one, a boss")])
    assert found.search("ada", 2) == (0, 1)


@pytest.mark.parametrize("query", ["", " ", "?!", "purple", "\x00", "[" * 5000, "é漢🙂\u202e", "''", "__"])
def test_what_finds_nothing(query):
    assert FIVE.search(query, 3) == ()


def test_no_documents_and_no_words():
    assert Corpus([]).search("red", 3) == ()
    assert Corpus([Document("1", "", "?!")]).search("red", 3) == ()
    assert FIVE.search("red", 0) == ()


def test_spelling_of_letters_does_not_count():
    found = Corpus([Document("1", "", "Straße ﬁne Ⅳ")])
    assert found.search("STRASSE", 1) == found.search("fine", 1) == found.search("iv", 1) == (0,)


def test_only_the_first_words_of_a_query_count_and_each_once():
    many = " ".join(f"x{number}" for number in range(QUERY_WORDS))
    assert FIVE.search(f"{many} red", 1) == ()
    assert FIVE.search(f"{'x0 ' * 9999} red", 1) == (2,)
    assert FIVE.search("blue blue blue blue red car", 1) == FIVE.search("blue red car", 1)


def test_an_index_is_built_once():
    corpora._index.cache_clear()
    for _ in range(2):
        Corpus(FIVE.documents).search("red", 1)  # another object with the same digest
    assert corpora._index.cache_info().misses == 1
    other = Corpus([*FIVE.documents[:4], Document("4", "", "tall trees")])
    assert other != FIVE and repr(other) != repr(FIVE) and Corpus(FIVE.documents) == FIVE
    moved = Corpus([Document("1", "ab", "c")]), Corpus([Document("1", "a", "bc")])
    assert moved[0] != moved[1]


@pytest.mark.slow
def test_every_process_finds_the_same():
    """Whatever order its sets have. A process that searches does not even import JAX."""
    program = (
        "import sys\n"
        "from atgrpo_jax.tasks.search.search import Search\n"
        "from atgrpo_jax.tasks.search.corpus import Corpus, Document\n"
        f"FIVE = Corpus(Document(str(i), '', text) for i, text in enumerate({TEXTS}))\n"
        "assert 'jax' not in sys.modules\n"
        "made = [Search().instance('train', i).corpus for i in range(5)]\n"
        "print(FIVE, made, [c.search(f'{d.text} of Ada', 9) for c in (FIVE, *made) for d in c.documents])"
    )
    command = [sys.executable, "-c", program]
    printed = {
        subprocess.run(
            command, env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(printed) == 1 and len(printed.pop()) > 1000


def test_the_library_starts_no_devices():
    """It computes with JAX as it is imported; the hosts of a run have not joined then."""
    import jax

    assert not library().selection.JAX_IS_AVAILABLE
    assert sys.modules["jax"] is jax and sys.modules["jax.lax"] is jax.lax


def test_without_the_library_one_line_says_what_to_install(monkeypatch):
    library.cache_clear()
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(ValueError, match=r'needs bm25s: pip install "atgrpo_jax\[search\]"'):
        Search()
    assert "jax" in sys.modules


# Answers


@pytest.mark.parametrize(
    ("answer", "same"),
    [("The U.S.A.", "usa"), ("an  apple a day", "apple day"), ("Theo", "theo"), ("7,000", "7000"), ("A", "")],
)
def test_normalised(answer, same):
    assert normalised(answer) == same


def test_exact_and_f1():
    assert exact("the Beatles!", ["Queen", "Beatles"]) and not exact("Beatles band", ["Beatles"])
    assert f1("Beatles band", ["Queen", "the Beatles"]) == pytest.approx(2 * 1 / (2 + 1))
    assert f1("new york york", ["York York city"]) == pytest.approx(2 * 2 / (3 + 3))
    assert (
        f1("yes it is", ["yes"]) == f1("yes", ["yes indeed"]) == f1("", ["Queen"]) == f1("the", ["Q"]) == 0.0
    )
    assert f1("Yes.", ["yes"]) == 1.0


def test_an_answer_stands_in_a_text_by_whole_words():
    assert stands_in("the Cyd", ["So Cyd, it is."]) and not stands_in("Cy", ["Cyd"])
    assert not stands_in("", ["a text"]) and not stands_in("x z", ["x y z"])
    assert stands_in("no", ["anything"]) and not stands_in("no", [])


# Files

DOCUMENTS = (
    {"id": "a", "title": "Ada", "text": "Her boss is Bob."},
    {"id": "b", "text": "Bob's mother is Cyd."},
)
QUESTION = {"question": "Who is the mother of Ada's boss?", "answer": "Cyd", "supporting": ["a", "b"]}


def file(folder, name, *rows):
    (folder / name).write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return str(folder / name)


def test_questions_on_a_corpus(tmp_path):
    corpus = file(tmp_path, "corpus.jsonl", *DOCUMENTS)
    task = Search(files={"test": file(tmp_path, "q.jsonl", QUESTION)}, corpus=corpus, results=2)
    problem = task.instance("test", 0)
    assert (problem.answers, problem.gold) == (("Cyd",), (0, 1))
    step = task.act(task.initial(problem), "searcher", "<search> mother of Bob")
    assert step.state.found == (1, 0)  # Bob is in both
    with pytest.raises(IndexError):
        task.instance("test", 1)


def test_questions_with_documents_of_their_own_and_a_pool(tmp_path):
    other = {"id": "a", "text": "Eve's friend is Dan."}
    second = {"question": "Who is Eve's friend?", "answers": ["Dan", "Daniel"], "supporting": ["a"]}
    files = {
        "train": file(tmp_path, "1.jsonl", QUESTION | {"documents": DOCUMENTS}),
        "test": file(tmp_path, "2.jsonl", second | {"documents": [DOCUMENTS[1] | {"id": "x"}, other]}),
    }
    own = Search(files=files).instance("test", 0)
    assert own.gold == (1,) and len(own.corpus.documents) == 2
    pooled = Search(files=files, pool=True)
    problem = pooled.instance("test", 0)
    assert [document.text for document in problem.corpus.documents] == [
        "Her boss is Bob.", "Bob's mother is Cyd.", "Eve's friend is Dan.",
    ]  # fmt: skip
    assert problem.gold == (2,) and pooled.instance("train", 0).gold == (0, 1)
    assert pooled.instance("train", 0).corpus is problem.corpus


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"question": " "}, r"q.jsonl:2: question is empty"),
        ({"answer": None}, r"q.jsonl:2: answers = \[None\] is no list of texts \(or answer no text\)"),
        ({"answers": []}, r"q.jsonl:2: answers = \[\] is no list of texts"),
        ({"answer": "the"}, r"q.jsonl:2: answers: 'the' has no word that counts"),
        ({"answer": "x" * 201}, r"or more than 200 characters"),
        ({"supporting": []}, r"q.jsonl:2: supporting = \[\] is no list of ids"),
        ({"supporting": "a"}, r"q.jsonl:2: supporting = 'a' is no list"),
        ({"supporting": ["c"]}, r"q.jsonl:2: supporting: no document has the id 'c'"),
        ({"documents": {}}, r"q.jsonl:2: documents = '{}' is no list"),
        ({"documents": ["a"]}, r"q.jsonl:2: documents: 'a' is no object"),
        ({"documents": [{"id": 1, "text": "x"}]}, r"q.jsonl:2: id = '1' of a document is no text"),
        ({"documents": [{"id": "a", "text": " "}]}, r"q.jsonl:2: text of the document 'a' is empty"),
        ({"documents": [DOCUMENTS[0]] * 2}, r"q.jsonl:2: documents: two have the same id"),
        ({"documents": [DOCUMENTS[0]]}, r"q.jsonl:2: supporting: 'b' is not the id of one of its documents"),
    ],
)
def test_bad_questions_are_named(tmp_path, change, says):
    corpus = file(tmp_path, "corpus.jsonl", *DOCUMENTS)
    questions = file(tmp_path, "q.jsonl", QUESTION, QUESTION | {"question": "Who?"} | change)
    with pytest.raises(ValueError, match=says):
        Search(files={"train": questions}, corpus=corpus)


def test_bad_corpora_are_named(tmp_path):
    questions = {"train": file(tmp_path, "q.jsonl", QUESTION)}
    for rows, says in (
        ((*DOCUMENTS, DOCUMENTS[0]), r"c.jsonl:3: id = 'a' is given twice"),
        (({"id": "a"},), r"c.jsonl:1: no field 'text'"),
        ((DOCUMENTS[0], DOCUMENTS[1] | {"title": 3}), r"c.jsonl:2: title = '3' of a document is no text"),
        ((), r"c.jsonl: there is no document"),
        (("{",), r"c.jsonl:1: no JSON"),
    ):
        corpus = file(tmp_path, "c.jsonl", *rows)
        read_corpus.cache_clear()  # by path
        with pytest.raises(ValueError, match=says):
            Search(files=questions, corpus=corpus)
    with pytest.raises(ValueError, match=r"q.jsonl:1: no field 'documents', and Search.corpus names no file"):
        Search(files=questions)
    with pytest.raises(ValueError, match="Search.corpus is one corpus already"):
        Search(files=questions, corpus=file(tmp_path, "d.jsonl", *DOCUMENTS), pool=True)
