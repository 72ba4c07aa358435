"""Programs that mean harm, against the sandbox itself."""

import contextlib
import os
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import shared_sandbox
from shared_sandbox import ADD, HELLO, SMALL, called, needs_namespaces, run

from atgrpo_jax.sandbox import kernel, pool, start

# Fixtures
sandbox = shared_sandbox.sandbox


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
            (worker,) = sandbox.processes
            for pid in below(worker):
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
    probe, real = pool.probe, start.sources

    def probe_together(settings):
        return "no namespaces" if settings.told["root"] else probe(settings)  # a root of its own

    def without_namespaces():
        sources = real()
        cut = [(name, text.replace("_libc.unshare(", "-abs(")) for name, text in sources["files"]]
        return sources | {"files": cut}

    monkeypatch.setattr(pool, "probe", probe_together)
    monkeypatch.setattr(start, "sources", without_namespaces)
    sandbox = SMALL.build(levels=("kernel",))
    assert "no namespaces of its own: programs can ask whether a path exists" in sandbox.about()
    assert run(sandbox, HOSTILE["thread bomb"][0]).end == "limit"
    assert run(sandbox, HELLO.source, "you").stdout == "hello you\n"
    sandbox.close()
