"""One of several processes that meet: python joined.py COUNT INDEX ADDRESS. Prints what it saw as JSON."""

import json
import os
import sys

import jax

from atgrpo_jax.common.hosts import told_json
from atgrpo_jax.hosts.joining import HostPlace, joined
from atgrpo_jax.hosts.meetings import SHORT
from atgrpo_jax.hosts.store import JaxStore
from atgrpo_jax.tools.probing import rounds

count, index, address = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
jax.config.update("jax_num_cpu_devices", 2)


def own(host, size):
    return bytes((host + i) % 251 for i in range(size))


with joined(HostPlace(count, index, address), 10.0, 60.0) as hosts:
    store = JaxStore()
    seen = {}
    # Shorter and longer than a message in the store, and longer than a piece of a program.
    sizes = [[0, 1], [SHORT + 1, 7], [1 << 20, SHORT], [0, 2_500_000]]
    for pair in sizes:
        found = hosts.meet(f"sizes {pair}", lambda pair=pair: own(index, pair[index]))
        seen[f"bytes {pair}"] = found == [own(host, size) for host, size in enumerate(pair)]
    numbers = []

    def work():
        take = hosts.counter()
        numbers.extend(take() for _ in range(5))

    hosts.meet("numbers", work)
    seen["numbers"] = numbers
    seen["told"] = told_json(hosts, "told", lambda: {"host": index})
    seen["none yet"] = store.wait("nothing", 0.05) is None
    store.put(f"words/{index}", b"one")
    store.put(f"words/{index}", b"two")  # in its place
    hosts.meet("words", lambda: None)
    seen["words"] = {key: value.decode() for key, value in store.under("words").items()}
    hosts.meet("words read", lambda: None)
    if index == 0:
        store.remove("words")
    hosts.meet("words gone", lambda: None)
    seen["left"] = sorted(store.under("words")) + sorted(store.under("counters"))
    seen["rounds"] = [result.fault or "ok" for result in rounds.results(hosts, lambda last: os._exit(9))]
print(json.dumps(seen))
