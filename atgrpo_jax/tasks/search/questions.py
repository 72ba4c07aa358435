"""Reads questions and corpora from files. See docs/search.md."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from atgrpo_jax.tasks.data import Files, read_rows, rows_of, words_of
from atgrpo_jax.tasks.search.corpus import Corpus, Document
from atgrpo_jax.tasks.search.scores import normalised

LONGEST = 200  # most characters of a true answer


@dataclasses.dataclass(frozen=True)
class Problem:
    question: str
    answers: tuple[str, ...]  # any of them is right
    gold: tuple[int, ...]  # numbers of the documents that the answer follows from, in order
    corpus: Corpus


@dataclasses.dataclass(frozen=True)
class Question:
    """A row of a file. Its supporting documents are in ``documents``, or in another file."""

    question: str
    answers: tuple[str, ...]
    supporting: tuple[str, ...]  # ids
    documents: tuple[Document, ...]  # its own; perhaps none
    place: str = dataclasses.field(compare=False)  # file and line


def key(question: Question) -> str:
    return words_of(question.question)


@functools.lru_cache
def read(path: str) -> tuple[Question, ...]:
    """Returns the questions of a file. Raises ValueError that names the line and the field of a bad
    row."""
    questions = []
    for number, row in read_rows(path, {"question": str, "supporting": list}):
        place = f"{path}:{number}"
        try:
            questions.append(question_of(row, place))
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error
    return tuple(questions)


@functools.lru_cache
def read_corpus(paths: tuple[str, ...]) -> Corpus:
    """Returns the documents of files. Raises ValueError that names the line and the field of a bad
    row, or the files if they have no document."""
    documents: dict[str, Document] = {}
    for path in paths:
        for number, row in read_rows(path, {"id": str, "text": str}):
            try:
                document = document_of(row)
                if document.id in documents:
                    raise ValueError(f"id = {document.id[:60]!r} is given twice")
            except ValueError as error:
                raise ValueError(f"{path}:{number}: {error}") from error
            documents[document.id] = document
    if not documents:
        raise ValueError(f"{', '.join(paths)}: there is no document")
    return Corpus(documents.values())


@functools.lru_cache
def pooled(files: Files) -> Corpus:
    """Returns the documents of all questions of all splits, each once, under new ids."""
    found = (
        document
        for split, _ in files
        for question in rows_of(files, split, read, key)
        for document in question.documents
    )
    contents = dict.fromkeys((document.title, document.text) for document in found)
    return Corpus(Document(f"{title}\n{text}", title, text) for title, text in contents)


@functools.lru_cache(maxsize=512)
def problem_in(question: Question, corpus: Corpus | None, pool: bool) -> Problem:
    """Returns the problem that a question is in a corpus; without one, in its own documents.

    In a pool (``pooled``) its documents have other ids. Raises ValueError that names the file and
    the line of a question whose documents are not there.
    """
    if corpus is None and not question.documents:
        raise ValueError(f"{question.place}: no field 'documents', and Search.corpus names no file")
    own = {document.id: document for document in question.documents}
    there = Corpus(question.documents) if corpus is None else corpus
    gold = []
    for name in question.supporting:
        if pool and name in own:
            name = f"{own[name].title}\n{own[name].text}"
        if name not in there.numbers:
            raise ValueError(f"{question.place}: supporting: no document has the id {name[:60]!r}")
        gold.append(there.numbers[name])
    return Problem(question.question, question.answers, tuple(dict.fromkeys(gold)), there)


def question_of(row: Mapping[str, Any], place: str = "") -> Question:
    """Returns the question in a row that has fields "question" and "supporting". Raises ValueError
    that names the bad field."""
    if not row["question"].strip():
        raise ValueError("question is empty")
    answers = row.get("answers", [row.get("answer")])
    texts = isinstance(answers, list) and answers and all(isinstance(one, str) for one in answers)
    if not texts:
        raise ValueError(f"answers = {str(answers)[:60]} is no list of texts (or answer no text)")
    for answer in answers:
        if not normalised(answer) or len(answer) > LONGEST:
            raise ValueError(
                f"answers: {answer[:60]!r} has no word that counts, or more than {LONGEST} characters"
            )
    supporting = row["supporting"]
    if not supporting or not all(isinstance(one, str) for one in supporting):
        raise ValueError(f"supporting = {str(supporting)[:60]} is no list of ids of documents")
    given = row.get("documents")
    if not isinstance(given, (list, type(None))):
        raise ValueError(f"documents = {str(given)[:60]!r} is no list")
    documents = tuple(map(document_of, given or ()))
    names = [document.id for document in documents]
    if len(set(names)) < len(names):
        raise ValueError("documents: two have the same id")
    for name in supporting:
        if documents and name not in names:
            raise ValueError(f"supporting: {name[:60]!r} is not the id of one of its documents")
    return Question(row["question"].strip(), tuple(answers), tuple(supporting), documents, place)


def document_of(row: Any) -> Document:
    """Returns the document in a row. Raises ValueError that names the bad field."""
    if not isinstance(row, Mapping):
        raise ValueError(f"documents: {str(row)[:60]!r} is no object")
    title = row.get("title") or ""
    for name, value in (("id", row.get("id")), ("title", title), ("text", row.get("text"))):
        if not isinstance(value, str):
            raise ValueError(f"{name} = {str(value)[:60]!r} of a document is no text")
    if not row["id"]:
        raise ValueError("id of a document is empty")
    if not row["text"].strip():
        raise ValueError(f"text of the document {row['id'][:60]!r} is empty")
    return Document(row["id"], title.strip(), row["text"].strip())
