"""Tries whether a level of protection holds on this machine."""

import os
import tempfile

from atgrpo_jax.common.errors import RunError
from atgrpo_jax.sandbox.process import WorkerLost, WorkerProcess
from atgrpo_jax.sandbox.protocol import Program
from atgrpo_jax.sandbox.start import Settings

# A program that tries what every level above "limits" must stop, and prints what it could do.
_BURGLAR = """
import os, socket, sys
done = []
def attempt(what, work):
    try:
        work()
    except Exception:
        return
    done.append(what)
secret, parent = input(), int(input())
attempt("read a file", lambda: open(secret).read())
attempt("read an environment", lambda: open(f"/proc/{parent}/environ").read())
attempt("write a file", lambda: open(secret + ".written", "w"))
attempt("open a socket", socket.socket)
attempt("start a process", os.fork)
attempt("signal a process", lambda: os.kill(parent, 0))
print(", ".join(done))
"""


def probe(settings: Settings) -> str | None:
    """Returns why a level does not protect here; None if it does, as far as one program shows."""
    with tempfile.NamedTemporaryFile() as secret:
        worker = WorkerProcess(settings)
        try:
            worker.greet()
            run = worker.run(Program(_BURGLAR, f"{secret.name}\n{os.getpid()}\n"))
        except (RunError, WorkerLost) as error:
            return str(error)
        finally:
            worker.stop()
    if run.end != "ok":
        return f"a program could not be run ({run.end}: {run.stderr.strip()[-200:]})"
    could = run.stdout.strip()
    return f"a program could {could}" if could and settings.level != "limits" else None
