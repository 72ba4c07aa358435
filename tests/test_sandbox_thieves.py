"""Programs that look for what is none of their business in all that they can read of themselves."""

import dataclasses
import shutil

import pytest
from shared_sandbox import SMALL, run

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
    if looker == "process_files" and house.level == "kernel" and "no namespaces" not in house.about():
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
