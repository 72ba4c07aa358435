"""Programs that mean harm, against the sandbox itself; real processes, nothing mocked."""

import asyncio
import contextlib
import dataclasses
import json
import os
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from atgrpo_jax.common.errors import RunError
from atgrpo_jax.sandbox import kernel, pool, process, start
from atgrpo_jax.sandbox.pool import SandboxConfig
from atgrpo_jax.sandbox.protocol import Program

SMALL = SandboxConfig(workers=1, wall_s=1.5, cpu_s=1, memory_mb=128, output_kb=16, threads=16)
HELLO = Program("print('hello', input())", "you")


@pytest.fixture(scope="module", params=["kernel", "namespaces"])
def sandbox(request):
    if request.param == "namespaces" and shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is not installed")
    made = dataclasses.replace(SMALL, level=request.param).build(levels=(request.param,))
    assert made.level == request.param
    yield made
    assert made.run_now(HELLO).stdout == "hello you\n" and made.replaced == 0
    made.close()


def namespaces_allowed():
    """To this user; containers and some distributions forbid them."""
    code = "import ctypes; raise SystemExit(-ctypes.CDLL(None).unshare(0x10020000))"
    return subprocess.run([sys.executable, "-c", code]).returncode == 0


needs_namespaces = pytest.mark.skipif(not namespaces_allowed(), reason="no user namespaces here")


def run(sandbox, source, stdin="", **more):
    return sandbox.run_now(Program(source, stdin, **more))


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


HOSTILE = {
    "fork bomb": ("import os\nwhile True: os.fork()", "error"),
    "process": ("import subprocess; subprocess.run(['true'])", "error"),
    "another program": ("import os; os.execv('/bin/true', ['true'])", "error"),
    "thread bomb": (
        "import threading, time\nthreading.stack_size(1 << 16)\n"
        "while True: threading.Thread(target=time.sleep, args=(9,)).start()",
        "limit",
    ),
    "memory bomb": ("x = []\nwhile True: x.append(bytearray(1 << 20))", "error"),
    "memory bomb, shared": ("import mmap\nx = [mmap.mmap(-1, 1 << 26) for _ in range(9)]", "error"),
    "endless output": ("while True: print('x' * 100)", "limit"),
    "endless errors": ("import sys\nwhile True: sys.stderr.write('x' * 100)", "limit"),
    "output past the end": ("import os\nos.lseek(1, 1 << 40, 0)\nos.write(1, b'x')", "error"),
    "sleep": ("import time; time.sleep(1e6)", "timeout"),
    "sleep, deaf": (
        "import signal, time\nfor i in range(1, 32):\n  try: signal.signal(i, signal.SIG_IGN)\n"
        "  except OSError: pass\nwhile True: time.sleep(1)",
        "timeout",
    ),
    "loop at the end": ("import atexit\n@atexit.register\ndef f():\n    while True: pass", "timeout"),
    "loop in a destructor": (
        "class A:\n    def __del__(self):\n        while True: pass\na = A()", "timeout",
    ),
    "thread without an end": (
        "import threading, time\nthreading.Thread(target=time.sleep, args=(1e6,)).start()", "timeout",
    ),
    "output at the end": ("import atexit\natexit.register(lambda: print('x' * 10 ** 6))", "limit"),
    "fork at the end": ("import atexit, os\natexit.register(lambda: os._exit(os.fork() and 3))", "ok"),
    "stopped": ("import os, signal; os.kill(os.getpid(), signal.SIGSTOP)", "timeout"),
    "loop": ("while True: pass", "timeout"),
    "loop in C": ("sum(range(10 ** 15))", "timeout"),
    "loop in a regular expression": ("import re; re.match('(a*)*b', 'a' * 99)", "timeout"),
    "limits raised": (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (-1, -1))", "error",
    ),
    "file written": ("open('/tmp/atgrpo_written', 'w')", "error"),
    "file written here": ("open('written', 'x')", "error"),
    "file deleted": ("import os; os.unlink('{victim}')", "error"),
    "file renamed": ("import os; os.rename('{victim}', '{victim}.gone')", "error"),
    "file emptied": ("import os; os.truncate('{victim}', 0)", "error"),
    "file made executable": ("import os; os.chmod('{victim}', 0o777)", "error"),
    "folder made": ("import os; os.mkdir('/tmp/atgrpo_made')", "error"),
    "file read": ("print(open('{victim}').read())", "error"),
    "password file read": ("print(open('/etc/passwd').read())", "error"),
    "our package read": ("print(open('{package}').read())", "error"),
    "environment of ours": ("print(open('/proc/{parent}/environ').read())", "error"),
    "memory of its parent": ("import os; open(f'/proc/{os.getppid()}/mem', 'rb')", "error"),
    "its own descriptors": ("import os; os.listdir('/proc/self/fd')", "error"),
    "socket": ("import socket; socket.create_connection(('127.0.0.1', {port}), 1)", "error"),
    "socket, UDP": (
        "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', {port}))",
        "error",
    ),
    "local socket": ("import socket; socket.socket(socket.AF_UNIX).connect('/run/x')", "error"),
    "parent killed": ("import os; os.kill(os.getppid(), 9)", "error"),
    "group killed": ("import os; os.kill(0, 9)", "error"),
    "all killed": ("import os; os.kill(-1, 9)", "error"),
    "parent killed through a pipe": (
        "import fcntl, os\nr, w = os.pipe()\nfcntl.fcntl(r, fcntl.F_SETOWN, os.getppid())", "error",
    ),
    "killed by itself": ("import os; os.kill(os.getpid(), 9)", "error"),
    "killed by a signal without a name": ("import os; os.kill(os.getpid(), 40)", "error"),
    "output closed": ("import os\nos.close(1)\nprint('x')", "error"),
    "all closed": ("import os\nos.closerange(0, 256)\nprint('x')", "error"),
    "namespaces": (
        "import ctypes, os\nif ctypes.CDLL(None).unshare(0x10000000) < 0: raise SystemExit(1)", "error",
    ),
}  # fmt: skip


@pytest.mark.thorough
@pytest.mark.parametrize("name", HOSTILE)
def test_harm_is_stopped(sandbox, tmp_path, name):
    source, end = HOSTILE[name]
    victim = tmp_path / "victim"
    victim.write_text("precious")
    mode = victim.stat().st_mode
    for word, value in (
        ("victim", victim),
        ("package", kernel.__file__),
        ("parent", os.getpid()),
        ("port", 9),
    ):
        source = source.replace(f"{{{word}}}", str(value))
    found = run(sandbox, source)
    assert found.end == end, found
    assert "precious" not in found.stdout and victim.read_text() == "precious"
    assert victim.stat().st_mode == mode and not Path("/tmp/atgrpo_made").exists()
    assert run(sandbox, HELLO.source, "you").stdout == "hello you\n"


def test_calls_by_number_are_refused(sandbox):
    """What Python has no function for: each must be an error of the kernel's, and none must work."""
    calls = {
        "ptrace": 101, "process_vm_readv": 310, "memfd_create": 319, "io_uring_setup": 425, "bpf": 321,
        "keyctl": 250, "userfaultfd": 323, "perf_event_open": 298, "mount": 165, "chroot": 161, "setuid": 105,
        "clone3": 435, "openat2": 437, "pidfd_open": 434, "socketpair": 53, "vfork": 58, "setsid": 112,
    }  # fmt: skip
    source = (
        "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\nfor name, number in CALLS.items():\n"
        "    if libc.syscall(number, 0, 0, 0, 0, 0) >= 0 or ctypes.get_errno() not in (1, 38): print(name)"
    )
    if os.uname().machine == "x86_64":
        assert run(sandbox, f"CALLS = {calls}\n{source}").stdout == ""


def test_nothing_survives_between_programs(sandbox):
    run(sandbox, "import math, builtins\nmath.pi = 3\nbuiltins.print = None\nimport json\njson.dumps = len")
    found = run(sandbox, "import math, json; print(math.pi > 3, json.dumps('a'))")
    assert found.stdout == 'True "a"\n'


def test_the_same_program_does_the_same(sandbox):
    source = "import random\nprint(random.random(), hash('a'), {'b', 'c', 'd'})"
    assert run(sandbox, source) == run(sandbox, source)


def test_a_program_knows_nothing_of_us(sandbox, monkeypatch):
    monkeypatch.setenv("SECRET", "token")
    found = run(sandbox, "import os, sys\nprint(dict(os.environ), sys.path, sys.argv, sorted(sys.modules))")
    assert (
        "SECRET" not in found.stdout and "atgrpo" not in found.stdout and "site-packages" not in found.stdout
    )


def test_no_frame_of_the_workers_is_below_a_program(sandbox):
    source = (
        "import sys\nframe = sys._getframe()\nwhile frame:\n"
        "    print(frame.f_code.co_name, *frame.f_locals if frame.f_back else '')\n    frame = frame.f_back"
    )
    ours = "_execute source name known module code\nrun\n<module>\n"
    assert run(sandbox, source).stdout.partition("\n")[2] == ours


STORM = """
import ctypes, os
libc, thread, small = ctypes.CDLL(None), ctypes.c_ulong(), ctypes.create_string_buffer(64)
libc.pthread_attr_init(small)
libc.pthread_attr_setstacksize(small, ctypes.c_size_t(1 << 16))
pause = ctypes.cast(libc.pause, ctypes.c_void_p)
started = [libc.pthread_create(ctypes.byref(thread), small, pause, None) for _ in range(300)]
os.write(1, b"%d" % (1 + started.count(0)))
os._exit(0)
"""


@needs_namespaces
def test_a_storm_of_threads_stays_within_the_limit(sandbox):
    """Faster than anybody looks: the kernel counts."""
    assert run(sandbox, STORM).stdout == "16"
    asked = f"def f():\n    exec({STORM!r}, {{}})"
    assert called(sandbox, ADD, "print(f(1))").stdout == "2\n"
    assert run(sandbox, asked, harness="f()", names=("f",)).end == "error"


LOOK_AROUND = """
import os, sys
def there(path):
    try:
        return bool(os.stat(path))
    except OSError:
        return False
frame, seen = sys._getframe(), [os.uname().nodename, *sys.orig_argv, *sys.path_importer_cache]
while frame:
    seen += [frame.f_code.co_filename, frame.f_globals.get("__file__"), frame.f_globals["__name__"]]
    frame = frame.f_back
print(*seen, *filter(there, input().split()))
"""


@needs_namespaces
def test_a_program_sees_neither_the_machine_nor_where_we_are(sandbox, tmp_path):
    paths = (tmp_path, kernel.__file__, sys.executable, "/etc/passwd", "/tmp", "/home", "/proc/1/exe", "/sys")
    seen = run(sandbox, LOOK_AROUND, " ".join(map(str, paths))).stdout.split()
    known = {"/proc/1/exe"} if sandbox.level == "namespaces" else set()  # its own first process
    assert not {*map(str, paths)} & set(seen) - known and seen[0] == "program" != socket.gethostname()
    checkout = str(Path(kernel.__file__).parents[2])
    assert not any("atgrpo" in word or checkout in word for word in seen)


def test_links_are_not_followed_and_memory_is_not_broken(sandbox):
    source = (
        "import ctypes, mmap, os\nlibc, page = ctypes.CDLL(None, use_errno=True), mmap.mmap(-1, 4096)\n"
        "at = ctypes.addressof(ctypes.c_char.from_buffer(page))\nfor advice in (12, 100, 101):\n"
        "    print(libc.madvise(ctypes.c_void_p(at), 4096, advice), ctypes.get_errno())\n"
        "try: os.readlink('/proc/self/exe')\nexcept OSError as error: print(error.errno)\n"
        "print(libc.madvise(ctypes.c_void_p(at), 4096, 4))"
    )
    assert run(sandbox, source).stdout == "-1 1\n" * 3 + "1\n0\n"


def test_no_capability_is_left(sandbox):
    """Also where the trainer is root's."""
    with ThreadPoolExecutor() as threads:
        sleeping = threads.submit(run, sandbox, "import time; time.sleep(1)")
        seen = set()
        while not sleeping.done():
            (worker,) = sandbox._workers
            for pid in below(worker._process.pid):
                with contextlib.suppress(OSError):
                    status = Path(f"/proc/{pid}/status").read_text()
                    found = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
                    if found["Seccomp"] == "2":  # a program, when it has begun
                        seen.add(tuple(found[f"Cap{kind}"] for kind in ("Inh", "Prm", "Eff", "Amb")))
    assert seen == {("0" * 16,) * 4}


def below(pid):
    """All processes that it has started, and those."""
    parents = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(status.parent.name)] = int(status.read_text().rsplit(")")[1].split()[1])
    return [one for one in parents if pid in ancestors(one, parents)]


def ancestors(pid, parents):
    while pid in parents:
        pid = parents[pid]
        yield pid


def test_where_there_are_no_namespaces_threads_are_counted_and_it_is_said(monkeypatch):
    monkeypatch.setattr(pool.Sandbox, "_further", lambda self, level: False)
    real = start.sources

    def without_namespaces():
        sources = real()
        cut = [(name, text.replace("_libc.unshare(", "-abs(")) for name, text in sources["files"]]
        return sources | {"files": cut}

    monkeypatch.setattr(start, "sources", without_namespaces)
    sandbox = SMALL.build(levels=("kernel",))
    assert "no namespaces of its own: programs can ask whether a path exists" in sandbox.about()
    assert run(sandbox, HOSTILE["thread bomb"][0]).end == "limit"
    assert run(sandbox, HELLO.source, "you").stdout == "hello you\n"
    sandbox.close()


def test_a_sandbox_that_is_closed_waits_for_no_program():
    sandbox = dataclasses.replace(SMALL, workers=2, wall_s=60.0).build(levels=("kernel",))
    for name in ("you", "me"):  # starts the workers
        run(sandbox, HELLO.source, name)
    with ThreadPoolExecutor() as threads:
        programs = [threads.submit(run, sandbox, "import time; time.sleep(59)") for _ in range(4)]
        while not sandbox._free.empty():
            time.sleep(0.01)
        sandbox.close()
        assert [one.result().end for one in programs] == ["crash"] * 4  # those that were waiting, too
    sandbox.close()  # again: nothing to wait for
    assert [sandbox._free.get() for _ in range(2)] == [None, None]


# Programs that are called


ADD = "class Solution:\n    def add(self, a, b=1):\n        return a + b\n"
ASK = "f = globals()['Solution().add']\n"


def called(sandbox, source, harness):
    return sandbox.run_now(Program(source, harness=ASK + harness, names=("Solution().add",)))


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


# Thieves: programs that look for what is none of their business in all that they can read of themselves


MARK = ("golden-", "0f3b97c1d5")  # apart, so that a program that looks for it does not hold it
LOOK = f"""
import ctypes, gc, os, re, sys
FIRST, SECOND = {MARK[0].encode()}, {MARK[1].encode()}

def marked(data):
    return re.search(FIRST + b"(?=" + SECOND + b")", data) is not None

def texts(value):
    text = value.encode(errors="replace") if isinstance(value, str) else value
    return [text] if isinstance(text, bytes) else []

def frames():
    for frame in sys._current_frames().values():
        while frame:
            for names in (frame.f_locals, frame.f_globals):
                yield from (part for value in names.values() for part in texts(repr(value)))
            frame = frame.f_back

def objects():
    gc.unfreeze()
    for one in gc.get_objects():
        for held in gc.get_referents(one):
            yield from texts(held)

def descriptors():
    for opened in range(3, 256):
        try:
            yield os.pread(opened, 1 << 20, 0)
        except OSError:
            pass

def process_files():
    for owner in ("self", os.getppid()):
        for name in ("environ", "cmdline", *(f"fd/{{i}}" for i in range(3, 100))):
            try:
                yield os.pread(os.open(f"/proc/{{owner}}/{{name}}", os.O_RDONLY | os.O_NONBLOCK), 1 << 20, 0)
            except OSError:
                pass

def parents_memory():
    try:
        maps = open(f"/proc/{{os.getppid()}}/maps").read()
        memory = open(f"/proc/{{os.getppid()}}/mem", "rb", 0)
    except OSError:
        return
    for begin, end in re.findall("(?m)^([0-9a-f]+)-([0-9a-f]+) rw", maps):
        for at in range(int(begin, 16), int(end, 16), 1 << 20):
            try:
                yield os.pread(memory.fileno(), min((1 << 20) + 64, int(end, 16) - at), at)
            except OSError:
                pass

def memory():
    # A page that is not there is an error of write's, and no end of this process.
    libc, (hear, tell) = ctypes.CDLL(None, use_errno=True), os.pipe()
    libc.sbrk.restype, libc.write.argtypes = ctypes.c_void_p, [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
    def read(number):
        return os.read(hear, 4096) if libc.write(tell, number << 12, 4096) == 4096 else b""
    code = ctypes.cast(libc.write, ctypes.c_void_p).value
    left = [at >> 12 for at in (*map(id, gc.get_objects()), libc.sbrk(0) - 1, code)]
    pages, before = set(), b""
    while left:
        number = left.pop()
        if number not in pages and read(number):
            pages.add(number)
            left += [number - 1, number + 1]
    for number in sorted(pages):
        data = read(number)
        yield before[-64:] + data
        before = data
"""
LOOKERS = ("frames", "objects", "descriptors", "process_files", "parents_memory", "memory")


@pytest.fixture(scope="module", params=["limits", "kernel", "namespaces"])
def house(request):
    if request.param == "namespaces" and shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is not installed")
    made = dataclasses.replace(SMALL, wall_s=9.0, cpu_s=8, memory_mb=256, level=request.param).build(
        levels=(request.param,)
    )
    yield made
    assert made.replaced == 0
    made.close()


def found_by(looker):
    return f"{LOOK}\nfound = sum(map(marked, {looker}()))"


@pytest.mark.parametrize("looker", LOOKERS)
def test_thieves_find_nothing(house, looker):
    mark = "".join(MARK)
    victim = f"# {mark}\nkept = '{mark}' + input()\nprint(kept)\ndef f(): return kept"
    harness = f"# {mark}\nassert f() == '{mark}' * 2\nprint('{mark}')"
    for _ in range(3):  # so that there is something wherever it might be left
        assert mark in run(house, victim, mark).stdout
        assert mark in run(house, victim, mark, harness=harness, names=("f",)).stdout
    assert run(house, f"{found_by(looker)}\nprint(found)").stdout == "0\n"
    thief = f"{found_by(looker)}\ndef f(): return found + sum(map(marked, {looker}()))"
    found = run(house, thief, harness=f"# {mark}\nwanted = '{mark}'\nprint(f())", names=("f",))
    assert found.stdout == "0\n", found


@pytest.mark.parametrize("looker", ["frames", "objects", "descriptors", "process_files", "memory"])
def test_thieves_find_what_is_there(house, looker):
    """Without this the test above would say nothing."""
    if looker == "process_files" and house.level == "kernel" and house._apart:
        pytest.skip("there is no /proc to be looked through")
    kept = "import os\nos.dup2(0, 9)\nkept = [input()]" + found_by(looker)
    assert int(run(house, f"{kept}\nprint(found)", "".join(MARK)).stdout) > 0


def test_a_program_and_its_harness_see_nothing_of_each_other(house):
    look = (
        "import os\nfound, own = [], os.getpid()\n"
        "for other in {*range(own - 4, own + 5), os.getppid()} - {own}:\n"
        "    for name in ('mem', 'maps', 'environ', *(f'fd/{i}' for i in range(8))):\n"
        "        try: found.append(os.open(f'/proc/{other}/{name}', os.O_RDONLY | os.O_NONBLOCK))\n"
        "        except OSError: pass\n"
    )
    source = f"def f():\n    global found\n    exec({look!r}, globals())\n    return len(found)"
    harness = f"{look}print(len(found), f())"
    found = run(house, source, harness=harness, names=("f",)).stdout.split()
    if house.level == "limits":  # which does not claim it: there is something to be seen
        assert "0" not in found and len(found) == 2
    else:
        assert found == ["0", "0"]


# The pool


def test_programs_run_side_by_side():
    sandbox = dataclasses.replace(SMALL, workers=4).build()
    sleepers = [Program(f"import time; time.sleep(0.5); print({i})") for i in range(4)]

    async def everything():
        return await asyncio.gather(*map(sandbox.run, sleepers))

    asyncio.run(everything())  # starts the workers
    began = time.monotonic()
    found = asyncio.run(everything())
    assert [run.stdout for run in found] == ["0\n", "1\n", "2\n", "3\n"]
    assert time.monotonic() - began < 1.5
    sandbox.close()
    with pytest.raises(RuntimeError):
        asyncio.run(sandbox.run(HELLO))


def test_a_worker_that_dies_or_hangs_is_replaced(monkeypatch):
    monkeypatch.setattr(process, "GRACE_S", 0.5)
    sandbox = SMALL.build()
    assert sandbox.run_now(HELLO).end == "ok"
    (worker,) = sandbox._workers
    large = Program(HELLO.source, "you" * 100_000)  # more than a pipe holds
    for sign, program in ((signal.SIGKILL, HELLO), (signal.SIGSTOP, HELLO), (signal.SIGSTOP, large)):
        (worker,) = sandbox._workers
        os.killpg(worker._process.pid, sign)
        found = sandbox.run_now(program)
        assert found.end == "crash" and "a worker" in found.stderr
        assert sandbox.run_now(HELLO).end == "ok"
    assert sandbox.replaced == 3 and len(sandbox._workers) == 1
    sandbox.close()


def test_a_worker_killed_while_a_program_runs(monkeypatch):
    sandbox = SMALL.build()
    sandbox.run_now(HELLO)
    (worker,) = sandbox._workers
    threading.Timer(0.3, lambda: os.killpg(worker._process.pid, signal.SIGKILL)).start()
    assert sandbox.run_now(Program("import time; time.sleep(9)")).end == "crash"
    sandbox.close()


def test_all_ends_with_the_trainer(tmp_path):
    """Also if it is killed: workers and the programs that they run."""
    script = (
        "import threading, time\nfrom atgrpo_jax.sandbox.protocol import Program\n"
        "from atgrpo_jax.sandbox.pool import SandboxConfig\n"
        "sandbox = SandboxConfig(workers=1, wall_s=60.0).build()\n"
        "sleep = Program('import time; time.sleep(60)')\n"
        "threading.Thread(target=sandbox.run_now, args=(sleep,), daemon=True).start()\n"
        "while not sandbox._workers: time.sleep(0.05)\ntime.sleep(0.5)\n"
        "print(*[worker._process.pid for worker in sandbox._workers], flush=True)\ntime.sleep(60)\n"
    )
    trainer = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    group = int(trainer.stdout.readline())
    trainer.kill()
    trainer.communicate()
    end = time.monotonic() + 5
    while time.monotonic() < end:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail("processes of the sandbox have outlived the trainer")


def test_the_strongest_level_is_taken_and_a_machine_below_the_least_refused(monkeypatch):
    monkeypatch.setattr(pool, "missing", lambda level: "none here" if level == "namespaces" else None)
    sandbox = SMALL.build()
    assert sandbox.level == "kernel"
    sandbox.close()
    with pytest.raises(RunError, match=r"SandboxConfig.level = 'namespaces': .* \(namespaces: none here\)"):
        dataclasses.replace(SMALL, level="namespaces").build()
    monkeypatch.setattr(pool, "missing", lambda level: "none here" if level != "limits" else None)
    with pytest.raises(RunError, match="kernel: none here"):
        SMALL.build()
    sandbox = dataclasses.replace(SMALL, level="limits").build()
    assert sandbox.level == "limits" and sandbox.run_now(HELLO).end == "ok"
    sandbox.close()


def test_a_level_that_does_not_hold_is_not_taken(monkeypatch):
    """The kernel may say that it has something and not enforce it: one tries."""
    real = start.settings

    def without_files(*args):
        settings = real(*args)
        return dataclasses.replace(settings, told=settings.told | {"files": False})

    monkeypatch.setattr(start, "settings", without_files)
    with pytest.raises(RunError, match="kernel: a program could read a file"):
        SMALL.build(levels=("kernel",))


def test_a_child_that_cannot_give_up_what_it_must_runs_nothing(monkeypatch):
    """Limits below what the process has already cannot be set, say; nothing is taken for a result then."""
    sandbox = SMALL.build()
    real = start.settings

    def without_memory(*args):
        settings = real(*args)
        limits = settings.told["limits"] | {"memory": "none"}
        return dataclasses.replace(settings, told=settings.told | {"limits": limits})

    monkeypatch.setattr(start, "settings", without_memory)
    for asked in (HELLO, Program(ADD, harness=ASK + "print(1)", names=("Solution().add",))):
        found = sandbox.run_now(asked)
        assert found.end == "crash" and found.stdout == "" and "the sandbox failed" in found.stderr
    sandbox.close()


def test_packages_that_programs_may_import():
    for level in ("kernel", "namespaces") if shutil.which("bwrap") else ("kernel",):
        config = dataclasses.replace(SMALL, level=level, packages=("numpy",), memory_mb=1024)
        sandbox = config.build("import numpy; numpy.warm = 7", levels=(level,))
        source = "import numpy.polynomial; print(numpy.arange(3).sum(), numpy.warm)\nimport jax"
        found = sandbox.run_now(Program(source))
        assert found.stdout == "3 7\n" and "Error" in found.stderr.splitlines()[-1]
        sandbox.close()


@pytest.mark.parametrize(
    "field, value, source, end",
    [
        ("wall_s", 0.2, "import time; time.sleep(0.5)", "timeout"),
        ("cpu_s", 1, "import time\nwhile time.process_time() < 1.5: pass", "timeout"),
        ("memory_mb", 64, "x = bytearray(100 << 20)", "error"),
        ("output_kb", 1, "print('x' * 2000)", "limit"),
        ("open_files", 8, "import os\nx = [os.dup(0) for _ in range(12)]", "error"),
        ("threads", 1, "import threading\nt = threading.Timer(0.3, print)\nt.start()", "limit"),
    ],
)
def test_every_limit_holds_and_can_be_raised(field, value, source, end):
    roomy = SandboxConfig(workers=1, wall_s=9.0, cpu_s=5)
    for config, expected in ((roomy, "ok"), (dataclasses.replace(roomy, **{field: value}), end)):
        sandbox = config.build(levels=("kernel",))
        assert sandbox.run_now(Program(source)).end == expected
        sandbox.close()


@pytest.mark.parametrize(
    "wrong, says",
    [
        ({"level": "strong"}, "SandboxConfig.level"),
        ({"workers": -1}, "SandboxConfig.workers"),
        ({"wall_s": 0.0}, "SandboxConfig.wall_s"),
        ({"open_files": 4}, "Python itself needs 8"),
        ({"packages": ("no_such",)}, "no_such is not installed here"),
    ],
)
def test_the_config_refuses(wrong, says):
    with pytest.raises(ValueError, match=says):
        SandboxConfig(**wrong)


# The filter, on both processors


def decide(code, architecture, number, *arguments):
    """What the kernel's interpreter of such filters would answer: "allow" or an error's number."""
    data = struct.pack("<IIQ6Q", number, architecture, 0, *(*arguments, *[0] * (6 - len(arguments))))
    instructions = [struct.unpack("<HBBI", code[i : i + 8]) for i in range(0, len(code), 8)]
    at, held = 0, 0
    while True:
        kind, yes, no, value = instructions[at]
        at += 1
        if kind == 0x20:
            (held,) = struct.unpack_from("<I", data, value)
        elif kind == 0x06:
            return "allow" if value == 0x7FFF0000 else value & 0xFFFF
        else:
            at += yes if (held == value if kind == 0x15 else held & value) else no


@pytest.mark.parametrize(
    "machine, name, read, socket, openat, clone, kill, prlimit, madvise, links",
    [
        ("x86_64", 0xC000003E, 0, 41, 257, 56, 62, 302, 28, (89, 267)),
        ("aarch64", 0xC00000B7, 63, 198, 56, 220, 129, 261, 233, (78,)),
    ],
)
def test_the_filter(machine, name, read, socket, openat, clone, kill, prlimit, madvise, links):
    code = kernel._filter(machine, pid=77)
    assert decide(code, name, read) == "allow" and decide(code, name, socket) == 1
    assert decide(code, 0x40000003, read) == 38  # another processor's call
    assert decide(code, name, read | 0x40000000) == 1  # another table of calls
    assert decide(code, name, openat, 0, 0, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY) == "allow"
    for flag in (os.O_WRONLY, os.O_RDWR, os.O_CREAT, os.O_TRUNC):
        assert decide(code, name, openat, 0, 0, flag) == 13
    thread = 0x3D0F00
    assert decide(code, name, clone, thread) == "allow" and decide(code, name, clone, 17) == 1
    assert decide(code, name, clone, thread | 0x10000000) == 1  # a thread in a namespace of its own
    assert decide(code, name, kill, 77, 9) == "allow"
    assert {decide(code, name, kill, pid, 9) for pid in (1, 0, 2**64 - 1, 76)} == {1}
    assert decide(code, name, prlimit, 0, 7, 0) == "allow"
    assert {decide(code, name, prlimit, 0, 7, new) for new in (1, 2**32, 2**47)} == {1}
    assert {decide(code, name, madvise, 0, 4096, advice) for advice in (4, 8, 14, 102)} == {"allow"}
    assert {decide(code, name, madvise, 0, 4096, advice) for advice in (12, 100, 101, 2**31)} == {1}
    assert {decide(code, name, number) for number in links} == {1}
    stack = resource.RLIMIT_STACK  # read, or set to no effect
    assert [decide(code, name, prlimit, 0, stack, new) for new in (0, 1, 2**47)] == ["allow", 0, 0]


def test_the_filter_of_a_process_yet_to_come():
    made = kernel.computing()
    for pid in (1, 77, 4_194_304):
        own = made.replace(struct.pack("I", kernel._ITSELF), struct.pack("I", pid))
        assert own == kernel._filter(os.uname().machine, pid)
