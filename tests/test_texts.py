"""What is found in a text: programs in fenced blocks, and lists."""

import time

import pytest

from atgrpo_jax.tasks.texts import Block, blocks, last_list, python_block

FENCED_STRING = "s = '''\n```\n'''\nprint(s)"
DOCUMENTED = 'def f():\n    """Doc.\n\n    ```python\n    f()\n    ```\n    """\n    return 1\nprint(f())'


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("```python\na\n```", "a"),
        ("```py\na\n```\n```\nb\n```", "a"),
        ("```python\na\n```\nthen\n```python\nb\nc\n```", "b\nc"),
        ("```\na\n```", "a"),
        ("```json\n{}\n```", "{}"),
        ("a", None),
        ("", None),
        # Tags and attributes
        ("``` python\na\n```", "a"),
        ("```python   \na\n```", "a"),
        ("```Python\na\n```", "a"),
        ("```python3\na\n```", "a"),
        ("```PY3\na\n```", "a"),
        ("```python3.11\na\n```", "a"),
        ("```{python}\na\n```", "a"),
        ("```{.python .numberLines}\na\n```", "a"),
        ('```python title="a.py"\na\n```', "a"),
        ("Here it is: ```python\na\n```", "a"),
        # Ends of lines, indented fences, other fences
        ("```python\r\na\r\nb\r\n```\r\n", "a\nb"),
        ("```python\ra\r```", "a"),
        ("1. So:\n   ```python\n   for i in x:\n     f(i)\n   ```", "for i in x:\n  f(i)"),
        ("~~~python\na = ~1\n~~~", "a = ~1"),
        ("````python\na\n````", "a"),
        # Where a block ends
        ("```python\na```", "a"),
        ("```python\na\n``` which prints it", "a"),
        ("```python\na  # don't\n```", "a  # don't"),
        ('```python\ns = "```"\nprint(s)\n```', 's = "```"\nprint(s)'),
        (f"```python\n{FENCED_STRING}\n```\nDone.", FENCED_STRING),
        (f"```python\n{DOCUMENTED}\n```\nDone.", DOCUMENTED),
        ("```python\na = f()\n```python\nb = f()\n```", "b = f()"),
        # Not ended: the text breaks off, or a string does
        ("```python\na", "a"),
        ("```python\na = f()\n```\nBetter:\n```python\nb = f(", "a = f()"),
        ("```\nan output\n```\n```python\na", "a"),
        ("```\na = f()", None),
        ("```python\nx = '''\n```\nBetter:\n```python\nb = f()\n```", "b = f()"),
        ("```python\nx = '''\n```\nThat is it.", "x = '''"),
        # Which of several
        ("```python\ndef f(x): return x\n```\nUsage:\n```python\n>>> f(2)\n2\n```", "def f(x): return x"),
        ("```python\n>>> f(2)\n```", None),
        ("```python\nprint(5)\n```\nIt prints:\n```\n5\n```", "print(5)"),
        ("```\nprint(5)\n```\nIt prints:\n```\n5\n```", "print(5)"),
        ("```python\nprint(5)\n```\nIt prints:\n```python\n5\n```", "print(5)"),
        ("```\nprint(5)\n```\n```output\nf(5)\n```", "print(5)"),
        ("```python\n```", None),
        ("```python\n\n```\n```\na\n```", "a"),
        ("Use ```x``` here.\n```python\na\n```", "a"),
        ("````markdown\n```python\na\n```\n````", "a"),
        # What was thought and not said
        ("<think>\n```python\na\n```\n</think>\n```python\nb\n```", "b"),
        ("<think>```python\na</think>\n```\nb\n```", "b"),
        ("so ```python\na\n```\n</think>\nNo program.", None),
        ("</think>```python\na\n```", "a"),
        ("```python\nprint('</think>')\n```", "print('</think>')"),
    ],
)
def test_python_block(text, program):
    assert python_block(text) == program


def test_blocks():
    text = "```input\n1 2\n```\n~~~Output\n3\n~~~\n```\nx"
    assert blocks(text) == [
        Block("input", "1 2\n", True),
        Block("output", "3\n", True),
        Block("", "x", False),
    ]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("[a, b]", "a, b"),
        ("[a] then [b]", "b"),
        ("[[a, b], [c]]", ["a, b", "c"]),
        ("[(0, 1), (2, 3)]", ["0, 1", "2, 3"]),
        ("[(0, 1), [2, 3], ]", ["0, 1", "2, 3"]),
        ("[(0, 1) and (2, 3)]", "(0, 1) and (2, 3)"),
        ("[a (b), c]", "a (b), c"),
        ("[[a]", "a"),
        ("[]", ""),
        ("[[], [a]]", ["", "a"]),
        ("[a", None),
        ("a]", None),
        ("", None),
    ],
)
def test_last_list(text, found):
    assert last_list(text) == found


PIECES = (
    "```\n", "```python\n", "```\n'''\n```\n", "`", "`x", "'", "'''\n", '"', "\\\"", "~~~\n", "~", "~~~ ",
    "#", "\n", "\r", " ", "x", "</think>\n", "=(", "```python\nx='''\n```\n```python\n",
    "[", "[[", "[(", "[ ", "[[],", "(0),", "]",
)  # fmt: skip


@pytest.mark.parametrize("read", [python_block, last_list])
def test_time_is_linear_in_the_length(read):
    """A text that is eight times as long takes about eight times as long, not 64 times."""

    def seconds(text):
        began = time.process_time()
        read(text)
        return time.process_time() - began

    for piece in PIECES:
        for before in ("", "```python\n", "["):
            short, long = ((before + piece * length)[:length] for length in (1 << 12, 1 << 15))
            # What takes so little is not told from noise; the square of 32768 steps would take minutes.
            assert seconds(long) < 0.5 + 40 * min(seconds(short) for _ in range(3)), (before, piece)
