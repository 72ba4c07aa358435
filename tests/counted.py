"""Runs ``train``, and counts the collectives of JAX that nobody asked for: python counted.py OUT ARGUMENTS.

``multihost_utils`` has them: ``jax.device_put`` of host arrays to devices of several hosts compares the
arrays of all hosts first, for one. OUT gets one line for each call, and "idle" for each idle program.
"""

import os
import runpy
import sys
import traceback

from jax.experimental import multihost_utils

from atgrpo_jax.hosts import programs

out = sys.argv.pop(1)
open(out, "w").close()


def note(line):
    with open(out, "a") as file:
        file.write(f"{line}\n")


def counted(name):
    inner = getattr(multihost_utils, name)

    def call(*args, **kwargs):
        places = [f"{os.path.basename(f.filename)}:{f.lineno}" for f in traceback.extract_stack()[-8:-1]]
        note(f"{name} {' '.join(places)}")
        return inner(*args, **kwargs)

    return call


def idle():
    call = make_idle()
    return lambda: (note("idle"), call())


make_idle = programs.idle
programs.idle = idle

for name in ("process_allgather", "broadcast_one_to_all", "assert_equal", "sync_global_devices"):
    setattr(multihost_utils, name, counted(name))
runpy.run_module("atgrpo_jax.train", run_name="__main__", alter_sys=True)
