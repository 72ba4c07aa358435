"""One of two processes that stop: python leaving.py INDEX ADDRESS. Host 1 reads late that host 0 leaves."""

import os
import signal
import sys
import time
import types

from atgrpo_jax.common.errors import Stopped
from atgrpo_jax.hosts import watcher
from atgrpo_jax.hosts.joining import HostPlace, joined

index, address = int(sys.argv[1]), sys.argv[2]
if index == 1:
    watcher.time = types.SimpleNamespace(monotonic=time.monotonic, sleep=lambda _: time.sleep(2.0))
try:
    with joined(HostPlace(2, index, address), 10.0, 60.0) as hosts:
        hosts.meet("start", lambda: None)
        if index == 0:
            time.sleep(1.0)  # host 1 has begun to wait
        raise Stopped(signal.SIGTERM)
except Stopped as stopped:
    os._exit(128 + stopped.signum)  # as cli.py does
