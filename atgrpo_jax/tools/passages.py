"""Turns downloaded sets of questions over passages into rows for the task (docs/search.md)."""

from collections.abc import Sequence
from typing import Any

from atgrpo_jax.tools.downloads import Unusable, json_of, list_of


def hotpotqa(row: dict[str, Any]) -> dict[str, Any]:
    """Converts a row of HotpotQA (hotpotqa.github.io, distractor setting) or of 2WikiMultihopQA
    (github.com/Alab-NII/2wikimultihop), which has the same form.

    ``context`` and ``supporting_facts`` are lists of pairs, as in the sets' own files, or mappings
    of lists, as on a hub.
    """
    answer = row.get("answer")
    facts = json_of(row.get("supporting_facts"), "no answer: a test set")
    if not answer or not facts:
        raise Unusable("no answer: a test set")
    passages = _pairs(json_of(row["context"], "no passages"), "title", "sentences", "content")
    documents = []
    for number, (title, sentences) in enumerate(passages):
        text = " ".join(sentence.strip() for sentence in list_of(sentences))
        documents.append({"id": str(number), "title": title, "text": text.strip()})
    titles = dict.fromkeys(title for title, _ in _pairs(facts, "title", "sent_id"))
    supporting = [one["id"] for title in titles for one in documents if one["title"] == title]
    if {one["title"] for one in documents if one["id"] in supporting} != set(titles):
        raise Unusable("a supporting passage is not among its passages")
    return _row(row.get("_id", row.get("id")), row["question"], [answer], supporting, documents)


def musique(row: dict[str, Any]) -> dict[str, Any]:
    """Converts a row of MuSiQue (github.com/stonybrooknlp/musique). Questions that cannot be
    answered, in its "full" files, are left out."""
    if row.get("answerable") is False:
        raise Unusable("a question that cannot be answered")
    if not row.get("answer"):
        raise Unusable("no answer: a test set")
    documents = []
    for passage in list_of(row["paragraphs"]):
        name = str(passage["idx"])
        documents.append({"id": name, "title": passage["title"], "text": passage["paragraph_text"].strip()})
    hops = [hop["paragraph_support_idx"] for hop in row.get("question_decomposition") or ()]
    marked = [passage["idx"] for passage in row["paragraphs"] if passage["is_supporting"]]
    supporting = [str(number) for number in dict.fromkeys((*hops, *marked)) if number is not None]
    if not supporting:
        raise Unusable("no supporting passage")
    answers = list(dict.fromkeys([row["answer"], *(row.get("answer_aliases") or ())]))
    return _row(row["id"], row["question"], answers, supporting, documents)


def _row(
    name: Any, question: str, answers: list[str], supporting: list[str], documents: list[dict[str, str]]
) -> dict[str, Any]:
    documents = [one for one in documents if one["text"]]  # some passages are empty
    if not set(supporting) <= {one["id"] for one in documents}:
        raise Unusable("a supporting passage is empty")
    return {
        "id": str(name),
        "question": question,
        "answers": answers,
        "supporting": supporting,
        "documents": documents,
    }


def _pairs(found: Any, first: str, *second: str) -> list[Sequence[Any]]:
    """Returns pairs that are given as such, or as a mapping of two lists of one length."""
    if not isinstance(found, dict):
        return [(one, other) for one, other in list_of(found)]
    others = next(found[name] for name in second if name in found)
    return list(zip(list_of(found[first]), list_of(others), strict=True))
