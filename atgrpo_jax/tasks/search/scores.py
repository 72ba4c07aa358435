"""Compares answers to questions as SQuAD and HotpotQA do.

The rules are those of SQuAD's and HotpotQA's own scorers (``evaluate-v1.1.py``,
``hotpot_evaluate_v1.py``; arXiv 1606.05250, 1809.09600).
"""

import collections
import re
import string
from collections.abc import Iterable

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
VERDICTS = ("yes", "no", "noanswer")  # right or wrong, but never nearly right


def normalised(answer: str) -> str:
    """Returns an answer in lower case, without punctuation, articles and needless spaces."""
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION)).split())


def exact(answer: str, truths: Iterable[str]) -> bool:
    """Returns whether an answer is one of the true ones once all are normalised."""
    return normalised(answer) in map(normalised, truths)


def f1(answer: str, truths: Iterable[str]) -> float:
    """Returns the F1 of an answer's words, for the true answer that it is nearest to."""
    return max(_f1(normalised(answer), normalised(truth)) for truth in truths)


def _f1(answer: str, truth: str) -> float:
    if answer != truth and (answer in VERDICTS or truth in VERDICTS):
        return 0.0
    ours = answer.split()
    theirs = truth.split()
    same = (collections.Counter(ours) & collections.Counter(theirs)).total()
    return 2 * same / (len(ours) + len(theirs)) if same else 0.0


def stands_in(answer: str, texts: Iterable[str]) -> bool:
    """Returns whether a text has the words of an answer, in a row. Yes and no need any text."""
    wanted = normalised(answer)
    if wanted in VERDICTS:
        return any(True for _ in texts)
    return bool(wanted) and any(f" {wanted} " in f" {normalised(text)} " for text in texts)
