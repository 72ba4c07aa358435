"""What the tests of the sandbox share: real sandboxes of two levels, and nothing mocked."""

import dataclasses
import shutil
import subprocess
import sys

import pytest

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


ADD = "class Solution:\n    def add(self, a, b=1):\n        return a + b\n"
ASK = "f = globals()['Solution().add']\n"


def called(sandbox, source, harness):
    return sandbox.run_now(Program(source, harness=ASK + harness, names=("Solution().add",)))
