"""Holds texts that must not break a task."""

import random
from collections.abc import Iterator

from atgrpo_jax.sandbox.protocol import End
from atgrpo_jax.tools.children import EVALUATED

LONGEST = 1 << 18  # characters: the longest text that is tried, and the longest output of a program

# Texts that no task may raise for, end or hang on; what it pays for them is its own affair.
HOSTILE = (
    "", " ", "\n\n", "[", "]", "[]", "[[]]", "[" * 3000, "{" * 3000, "[0]" * 3000, "['']", "[\x00]",
    "[9999999999999999999999]", f"[{'9' * 9000}]", f"[[{'9' * 9000}, 1, 1]]", f"\\boxed{{{'9' * 190}}}",
    "[-1, -1, -1]", "[1e999, nan, inf]", "[None, True]", "é漢🙂\u202e[U]",
    "\\boxed{", "\\boxed{}", "\\boxed{" * 500, "\\boxed{\\frac{1}{0}}", "\\boxed{10**10**10}",
    "```", "```python\n", "```python\n```", "```python\nraise SystemExit(1)\n```",
    "```python\nprint([])\n```", "<|end|>", "####", "#### [U", "x" * 50_000,
    "__import__('os').abort()", "{{ 7 * 7 }} {% for %}", "9**9**9**9", "exit()", "while True: pass",
)  # fmt: skip
_CALLS = (
    f"__import__('os')._exit({EVALUATED})",
    "[c for c in ().__class__.__base__.__subclasses__() if c.__name__ == '_wrap_close'][0].__init__"
    f".__globals__['_exit']({EVALUATED})",
)
_FORMS = (
    "%s",
    "[%s]",
    "[[0, 1, %s]]",
    "1 + %s",
    "\\boxed{%s}",
    "#### %s",
    "<answer>%s</answer>",
    "```python\n%s\n```",
)
# A task that evaluates one of these ends its process with the code EVALUATED.
EVALUATES = tuple(form % call for call in _CALLS for form in _FORMS)

# How a program may end, and what it may print.
ENDS: tuple[End, ...] = ("ok", "error", "timeout", "limit", "crash")
OUTPUTS = ("", "\x00", "[" * 2000, "0\n" * 2000, "nan", "[true]", "{}")
# These are repeated to any length. With "…" it is only the middle part that is repeated.
SHAPES = (
    "1", "1, ", "[", "[[1, 2], ", "(0, 1), ", "a", "a ", "0\n", "{", "\\boxed{1} ", "```\n", "x = 1\n", '"',
    "\\", "-", "1.", "$", "é", "[…1, …]", "[…'R', …]", "[…(0, 1), …]", "[…[0, 2, 3], …]", "[…x…]",
    "\\boxed{…1…}", "```python\n…x = 1\n…\n```", "…1…x",
)  # fmt: skip


def spoilt(text: str, rng: random.Random) -> Iterator[str]:
    """Yields texts that are nearly an answer."""
    middle = len(text) // 2
    yield text[:middle]
    yield text * 3
    yield text[::-1]
    letters = list(text)
    for _ in range(1 + len(letters) // 6):
        if letters:
            letters[rng.randrange(len(letters))] = chr(rng.choice((32, 48, 57, 63, 91, 93, 85, 68, 0x301)))
    yield "".join(letters)
