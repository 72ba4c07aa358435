"""Joins this process to those of the other hosts, and parts from them."""

import atexit
import contextlib
import os
import re
import socket
import sys
import threading
from collections.abc import Iterator
from typing import NamedTuple

import jax

from atgrpo_jax.common import progress
from atgrpo_jax.common.cli import exit_code
from atgrpo_jax.common.errors import ConfigError, RunError
from atgrpo_jax.common.hosts import Alone, Hosts
from atgrpo_jax.hosts import programs
from atgrpo_jax.hosts.gathering import by_devices
from atgrpo_jax.hosts.meetings import Joined
from atgrpo_jax.hosts.store import JaxStore
from atgrpo_jax.hosts.watcher import Watcher

JOIN_S = 300.0  # time for all hosts to start


class HostPlace(NamedTuple):
    """Says which of the hosts this process is. ``coordinator`` is where host 0 listens."""

    hosts: int
    host: int
    coordinator: str  # ADDRESS:PORT


def place_of(hosts: str | None, index: int | None, coordinator: str | None) -> HostPlace | None:
    """Reads the flags --hosts, --host and --coordinator. Returns None for a run on one host.

    Raises ConfigError for flags that do not belong together, or if "auto" finds nothing.
    """
    if hosts is None:
        if index is not None or coordinator is not None:
            raise ConfigError("--host and --coordinator need --hosts, e.g. --hosts=2")
        return None
    if hosts == "auto":
        if index is not None or coordinator is not None:
            raise ConfigError("--hosts=auto finds --host and --coordinator itself; leave them out")
        return _detected()
    if not hosts.isdecimal() or int(hosts) < 1:
        raise ConfigError(f"--hosts={hosts}: expected a number or auto")
    if index is None or coordinator is None:
        raise ConfigError(f"--hosts={hosts} needs --host=NUMBER and --coordinator=ADDRESS:PORT of host 0")
    if not 0 <= index < int(hosts):
        raise ConfigError(f"--host={index}: with --hosts={hosts} they are 0 to {int(hosts) - 1}")
    if not re.fullmatch(r".+:\d{1,5}", coordinator):
        raise ConfigError(f"--coordinator={coordinator}: expected ADDRESS:PORT, e.g. 10.0.0.2:8476")
    return HostPlace(int(hosts), index, coordinator)


def _detected() -> HostPlace:
    """Returns what JAX knows of Cloud TPU, GKE and SLURM."""
    from jax._src.clusters import ClusterEnv

    address, count, index, _ = ClusterEnv.auto_detect_unset_distributed_params(
        None, None, None, [0], None, int(JOIN_S)
    )
    if address is None or count is None or index is None:
        raise ConfigError(
            "--hosts=auto: this is no Cloud TPU, GKE or SLURM that JAX knows; give --hosts, --host and "
            "--coordinator"
        )
    return HostPlace(count, index, address)


@contextlib.contextmanager
def joined(
    place: HostPlace | None,
    heartbeat_s: float,
    patience_s: float,
    cpu: bool = False,
    lockstep: bool = False,
) -> Iterator[Hosts]:
    """Joins the other hosts until the end of the ``with``. Without ``place`` this host is alone.

    Args:
      heartbeat_s: all hosts end if one of them was not heard of for so long.
      patience_s: the longest time that a host waits for another one at a meeting.
      cpu: whether long messages travel through the hosts' CPU devices.
      lockstep: whether all hosts issue the same number of programs between common ones.

    An error in the ``with`` reaches the other hosts. This process then ends with its exit code, and
    does not wait for them as JAX would.
    """
    if place is None:
        yield Alone()
        return
    _start(place, heartbeat_s, JOIN_S)
    store = JaxStore()
    watcher = Watcher(store, place.host, place.hosts, heartbeat_s, patience_s, _exit_now)
    hosts = Joined(
        store,
        place.host,
        place.hosts,
        lambda: by_devices(place.host, "cpu" if cpu else None),
        watcher,
        patience_s,
        programs.idle if lockstep else None,
    )
    progress.speak_as(place.host)
    watcher.start()
    try:
        yield hosts
    except BaseException as error:
        told = hosts.leave(error)
        watcher.end()
        watcher.farewell()
        atexit.register(_end, exit_code(told))
        raise told from (None if told is not error else error.__cause__)
    finally:
        watcher.end()


def _start(place: HostPlace, heartbeat_s: float, join_s: float) -> None:
    """Starts JAX's service on host 0, and connects to it. Ends the process if some host is missing."""
    port = int(place.coordinator.rpartition(":")[2])
    if place.host == 0:
        _check_free(port)

    def late() -> None:
        if place.host == 0:
            line = f"fewer than {place.hosts} hosts came to {place.coordinator} within {join_s:.0f} s"
        else:
            line = (
                f"{place.coordinator} (host 0) did not answer, or a host did not come, within {join_s:.0f} s"
            )
        _exit_now(f"host {place.host}: {line}; start all hosts, each with its own --host", 1)

    # CPU devices start programs in no order. Two processes with several of them each then waited for one
    # another in different programs. Accelerators run theirs in the order in which they get them.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    timer = threading.Timer(join_s, late)
    timer.daemon = True
    timer.start()
    jax.distributed.initialize(
        place.coordinator,
        place.hosts,
        place.host,
        cluster_detection_method="deactivate",
        initialization_timeout=int(2 * join_s) + 1,  # JAX's own end has no readable line
        heartbeat_timeout_seconds=max(int(heartbeat_s), 1),
    )
    timer.cancel()


def _check_free(port: int) -> None:
    with contextlib.closing(socket.socket(socket.AF_INET6 if socket.has_ipv6 else socket.AF_INET)) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(("", port))
        except OSError as error:
            raise RunError(f"--coordinator: port {port} cannot be used here ({error.strerror})") from error


def _exit_now(line: str, code: int) -> None:
    progress.say_at_once(f"error: {line}")
    os._exit(code)


def _end(code: int) -> None:
    """Ends the process. Registered after JAX's own end, it runs first; that would wait for the others."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
