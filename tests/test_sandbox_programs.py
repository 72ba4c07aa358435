"""How programs and their harnesses end in the sandbox, and what they print."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import shared_sandbox
from shared_sandbox import ADD, SMALL, called, run

from atgrpo_jax.sandbox.protocol import Program

# Fixtures
sandbox = shared_sandbox.sandbox


def test_a_program_reads_and_prints(sandbox):
    found = run(
        sandbox, "import sys\nprint(sum(map(int, sys.stdin)))\nprint('é', file=sys.stderr)", "1\n2\n3"
    )
    assert (found.end, found.stdout, found.stderr, found.built) == ("ok", "6\n", "é\n", True)


@pytest.mark.parametrize(
    "source, end, says, built",
    [
        ("print(1", "error", "SyntaxError: '(' was never closed", False),
        ("print('a')\n1 / 0", "error", 'File "program.py", line 2', True),
        ("raise SystemExit(3)", "error", "", True),
        ("raise SystemExit('no')", "error", "no\n", True),
        ("raise SystemExit", "ok", "", True),
        ("import atexit\natexit.register(print, 'last')", "ok", "", True),
        ("from numpy import array", "error", "No module named 'numpy'", True),
        ("def f(): f()\nf()", "error", "RecursionError", True),
        ("import ctypes; ctypes.string_at(0)", "error", "ended by SIGSEGV", True),
        ("import threading; t = threading.Thread(target=print, args=('t',)); t.start()", "ok", "", True),
    ],
)
def test_how_programs_end(sandbox, source, end, says, built):
    found = run(sandbox, source)
    assert (found.end, found.built) == (end, built) and says in found.stderr


def programs():
    """Of programs.txt: name, source, how it ends and what it prints, as Python runs it from a file."""
    text = (Path(__file__).parent / "programs.txt").read_text(encoding="utf-8")
    for part in text.removeprefix("=== ").split("\n=== "):
        body, _, outcome = part.strip("\n").rpartition("\n--- ")
        name, _, source = body.partition("\n")
        end, _, printed = outcome.partition(" ")
        yield name, source, end, json.loads(printed)


def test_programs_end_as_python_ends_them(sandbox):
    """Whatever prints last: handlers, threads, destructors, streams of a program's own."""
    found = {name: sandbox.run_now(Program(source, "3\n4\n")) for name, source, _, _ in programs()}
    got = {name: (run.end, run.stdout) for name, run in found.items()}
    assert got == {name: (end, printed) for name, _, end, printed in programs()} and len(got) > 120


@pytest.mark.slow
def test_the_table_of_programs_is_pythons(tmp_path):
    wrong = {}
    for name, source, end, printed in programs():
        (tmp_path / "program.py").write_text(source, encoding="utf-8")
        with open(tmp_path / "out", "wb+") as out:
            ended = subprocess.run(
                [sys.executable, "-I", "program.py"], cwd=tmp_path, input=b"3\n4\n", stdout=out,
                stderr=subprocess.PIPE, env={"PYTHONUTF8": "1"},
            )  # fmt: skip
            out.seek(0)
            found = "error" if ended.returncode else "ok", out.read().decode(errors="replace")
        if found != (end, printed):
            wrong[name] = found
    assert wrong == {}


def test_what_comes_before_a_program(sandbox):
    """It runs in the same module, and what must be first in a text may still be first in the program."""
    source = (
        "'''Doc.'''\nfrom __future__ import annotations\ndef f(x: Nowhere): return gcd(x, 6)\n"
        "print(f(4), __doc__)"
    )
    found = run(sandbox, source, before="from math import gcd\n")
    assert (found.end, found.stdout) == ("ok", "2 Doc.\n")
    lazy = "from __future__ import annotations\n"
    assert run(sandbox, "def f(x: Nowhere): pass", before=lazy).end == "ok"
    found = run(sandbox, "print(1)\n1 / 0", before="x = 1\n" * 9)
    assert 'File "program.py", line 2' in found.stderr
    assert run(sandbox, "\ufeffprint(1)").stdout == "1\n"


def test_recursion_is_as_deep_as_the_memory(sandbox):
    """Through C, which needs a stack; and what contest programs do to get one is no error."""
    source = (
        "import functools, resource, sys\nsys.setrecursionlimit(10 ** 7)\n"
        "resource.setrlimit(resource.RLIMIT_STACK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))\n"
        "@functools.lru_cache(None)\ndef f(n): return 0 if n == 0 else 1 + f(n - 1)\n"
        "print(f(int(input())), resource.getrlimit(resource.RLIMIT_STACK)[0] >> 20)"
    )
    assert run(sandbox, source, "40000").stdout == f"40000 {SMALL.memory_mb}\n"
    assert run(sandbox, source, "4000000").end == "error"


def test_nothing_survives_between_programs(sandbox):
    run(sandbox, "import math, builtins\nmath.pi = 3\nbuiltins.print = None\nimport json\njson.dumps = len")
    found = run(sandbox, "import math, json; print(math.pi > 3, json.dumps('a'))")
    assert found.stdout == 'True "a"\n'


def test_the_same_program_does_the_same(sandbox):
    source = "import random\nprint(random.random(), hash('a'), {'b', 'c', 'd'})"
    assert run(sandbox, source) == run(sandbox, source)


def test_a_harness_calls_the_program(sandbox):
    data = "[1.5, None, True, (2,), {3}, {'k': [b'b']}, frozenset(), float('inf'), 2 ** 99, 1j]"
    found = called(
        sandbox,
        "class Solution:\n    def add(self, a, b): return [a, b]",
        f"print(f({data}, b=0) == [{data}, 0])",
    )
    assert (found.end, found.stdout, found.built) == ("ok", "True\n", True)


@pytest.mark.parametrize(
    ("value", "test"),
    [
        ("10 ** 5000", "== 10 ** 5000"), ("-2 ** 63", "== -2 ** 63"),
        ("__import__('fractions').Fraction(1, 3)", "* 3 == 1"),
        ("__import__('decimal').Decimal('0.10')", "* 10 == 1"),
        ("iter([1, 2])", "in () or list(f()) == [1, 2]"), ("range(2, 9, 3)", "[1] == 5"),
        ("__import__('itertools').count()", "in () or next(f()) == 0"),
        ("__import__('collections').deque([1, 2])", "in () or list(f()) == [1, 2]"),
        ("bytearray(b'a')", "== b'a'"), ("__import__('enum').IntEnum('E', 'A').A", "== 1"),
        ("type('F', (float,), {})(1.5)", "== 1.5"), ("int", "is int"), ("ValueError", "is ValueError"),
    ],
)  # fmt: skip
def test_what_a_program_may_return(sandbox, value, test):
    found = called(sandbox, f"class Solution:\n    def add(self): return {value}", f"print(f() {test})")
    assert (found.end, found.stdout) == ("ok", "True\n"), found


NODE = "class Node:\n    def __init__(self, value, next=None):\n        self.value, self.next = value, next\n"


def test_objects_of_classes_that_both_define(sandbox):
    source = f"{NODE}class Solution:\n    def add(self, node): return Node(node.value + 1, node)"
    found = called(sandbox, source, f"{NODE}n = f(Node(1))\nprint(n.value, n.next.value, n.next.next)")
    assert (found.end, found.stdout) == ("ok", "2 1 None\n")
    # A class of the program's own, or of Python's, is not made on the harness' side.
    for made in ("Own()", "__import__('subprocess').Popen"):
        source = f"class Own: pass\nclass Solution:\n    def add(self): return {made}"
        assert called(sandbox, source, "print(f())").end == "error"


@pytest.mark.parametrize(
    "source",
    [
        "class Yes:\n  def __eq__(self, o): return True\nclass Solution:\n  def add(self, *a): return Yes()",
        "class Solution:\n  def add(self, *a): import os; print('1'); os.write(1, b'1'); raise SystemExit(0)",
        "class Solution:\n  def add(self, *a): import os; os._exit(0)",
        "class Solution:\n  def add(self, *a): import os; os.write(6, b'{\"result\": 1}\\n' * 9); return 2",
        "class Solution:\n  def add(self, *a): import json; json.dumps = lambda x: '{}'; return 2",
        "class Solution:\n  def add(self, *a): import os; os.closerange(0, 99)",
        "raise SystemExit(0)",
        "class Solution:\n  def add(self, *a):\n    x = []\n    x.append(x)\n    return x",
        "syntax error",
    ],
)
def test_a_program_cannot_speak_for_its_harness(sandbox, source):
    harness = "try:\n    print(1 if f(2, 3) == 5 else 0)\nexcept Exception:\n    print(0)"
    found = called(sandbox, source, harness)
    assert (found.end, found.stdout) in (("ok", "0\n"), ("error", ""))
    assert called(sandbox, ADD, harness).stdout == "1\n"


@pytest.mark.parametrize(
    "deed, end, says",
    [
        ("while True: pass", "timeout", ""),
        ("import time; time.sleep(9)", "timeout", ""),
        ("import os; os._exit(0)", "error", ""),
        ("import os; os.kill(os.getpid(), 40)", "error", "ended by signal 40"),
        ("import os; os.closerange(0, 99)", "error", ""),
    ],
)
def test_a_harness_ends_with_its_program(sandbox, deed, end, says):
    """What it has printed by then stands; nothing that it does later is taken for the program's failure."""
    source = f"class Solution:\n    def add(self, a, b):\n        if not a: return 0\n        {deed}"
    harness = (
        "print(f(0, 0), flush=True)\ntry: f(1, 0)\nexcept BaseException: print('as expected')\nprint('more')"
    )
    found = called(sandbox, source, harness)
    assert (found.end, found.stdout) == (end, "0\n") and says in found.stderr
