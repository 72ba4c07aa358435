"""Searches documents by BM25. What is found depends on the documents and the query alone.

The scores are those of ``bm25s`` (the formula of Lucene). A word is a run of letters and digits, and
case does not count. Scores are rounded before they are compared, and equal ones are ordered by the
document's number. So all processes, and hosts with other libraries of mathematics, find the same.
"""

import dataclasses
import functools
import itertools
import logging
import re
import sys
import unicodedata
from collections.abc import Iterable
from types import ModuleType
from typing import Any

import numpy as np

from atgrpo_jax.common.types import hash_bytes

QUERY_WORDS = 64  # of a query that count
_DECIMALS = 6  # of scores that count
_WORD = re.compile(r"\w+")


@dataclasses.dataclass(frozen=True)
class Document:
    id: str
    title: str
    text: str


class Corpus:
    """An immutable list of documents. Two are equal if their digests are."""

    def __init__(self, documents: Iterable[Document]):
        self.documents = tuple(documents)
        parts = (f"{len(d.id)} {len(d.title)} {len(d.text)} {d.id}{d.title}{d.text}" for d in self.documents)
        self.digest = hash_bytes("".join(map(str, map(hash_bytes, parts)))).hex()

    @functools.cached_property
    def numbers(self) -> dict[str, int]:
        """Returns the number of each document, by its id."""
        return {document.id: number for number, document in enumerate(self.documents)}

    def search(self, query: str, most: int) -> tuple[int, ...]:
        """Returns the numbers of the documents that fit a query best, at most so many.

        The best comes first. A document that has no word of the query is never found. Only the
        first ``QUERY_WORDS`` different words count.
        """
        return _index(self).search(query, most)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Corpus) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"Corpus({self.digest})"


@functools.lru_cache(maxsize=512)
def _index(corpus: Corpus) -> "_Index":
    return _Index(corpus.documents)


class _Index:
    def __init__(self, documents: Iterable[Document]):
        # Words are numbered in the order of the documents: a set has another order in each process.
        self._ids: dict[str, int] = {}
        rows = []
        for document in documents:
            found = words(f"{document.title} {document.text}")
            rows.append([self._ids.setdefault(word, len(self._ids)) for word in found])
        self._bm25: Any = None  # the library cannot index documents without words
        if self._ids:
            self._bm25 = library().BM25(dtype="float64")
            self._bm25.index((rows, self._ids), create_empty_token=False, show_progress=False)

    def search(self, query: str, most: int) -> tuple[int, ...]:
        asked = list(itertools.islice(dict.fromkeys(words(query)), QUERY_WORDS))
        ids = [self._ids[word] for word in asked if word in self._ids]
        if not ids or most < 1:
            return ()
        scores = np.round(self._bm25.get_scores(ids), _DECIMALS)
        found = np.flatnonzero(scores > 0)
        if len(found) > most:  # sorts no more than it must
            least = np.partition(scores[found], -most)[-most]
            found = found[scores[found] >= least]
        order = np.argsort(-scores[found], kind="stable")
        return tuple(map(int, found[order][:most]))


def words(text: str) -> list[str]:
    """Returns the words of a text, in the form in which they are compared."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


@functools.cache
def library() -> ModuleType:
    """Imports bm25s without its use of JAX. Raises ImportError if it is not installed.

    Where JAX can be imported, bm25s computes with it while it is imported. That would start the
    devices before the hosts of a run have joined. So JAX is hidden meanwhile.
    """
    names = ("jax", "jax.lax")
    hidden = {name: sys.modules[name] for name in names if name in sys.modules}
    sys.modules.update(dict.fromkeys(names))  # type: ignore[arg-type]  # None: not to be imported
    try:
        import bm25s
    finally:
        for name in names:
            del sys.modules[name]
        sys.modules.update(hidden)
    logging.getLogger("bm25s").setLevel(logging.WARNING)  # it says more than anybody asked for
    return bm25s
