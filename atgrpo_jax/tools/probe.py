"""Looks at this machine in minutes: what it is, whether all computes what it should, and how fast.

    python -m atgrpo_jax.tools.probe --size=all [--out=FOLDER] [--bucket=gs://BUCKET/FOLDER]

Several hosts run it together, with --hosts, --host and --coordinator as for train.

It writes probe.json and probe.md, and prints the latter: a page to paste into an issue. A part that
fails is a line of the page, and the others go on. The exit code is then 1.
"""

import functools
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
from absl import flags

from atgrpo_jax.common.cli import host_flags, refuse_arguments, run_main
from atgrpo_jax.common.errors import ConfigError
from atgrpo_jax.common.files import folder_path, make_folder, write_atomically
from atgrpo_jax.common.progress import say
from atgrpo_jax.hosts.joining import HostPlace, joined, place_of
from atgrpo_jax.models.config import Dtype
from atgrpo_jax.models.families.table import transformer
from atgrpo_jax.tools.probing import bucket, kernels, machine, rounds, speed, weights
from atgrpo_jax.tools.probing.page import page, record
from atgrpo_jax.tools.probing.parts import Found, Result, tried
from atgrpo_jax.tools.probing.speed import SIZES, Size

Part = tuple[str, Callable[[], Found]]
HEARTBEAT_S = 30.0
LAST_S = 3.0  # time for the other hosts to write what they know, if a round stands still
PATIENCE_S = 3600.0  # a part may take longer on one host than on the others
DTYPES: tuple[Dtype, ...] = ("float32", "bfloat16")


def probe(sizes: Sequence[Size], url: str | None, only_rounds: bool = False) -> Iterator[Result]:
    """Yields the result of each part of this host when it is there."""
    yield _run("host", machine.host)
    devices = _run("devices", machine.devices)
    yield devices
    if only_rounds:
        return
    yield _run("sandbox", machine.sandbox)
    if devices.found is not None:
        yield from _computing(sizes, devices.value("platform"), devices.value("kind"))
    if url is not None:
        yield _run("bucket", functools.partial(bucket.bucket, url))


def _computing(sizes: Sequence[Size], platform: kernels.Where, kind: str) -> Iterator[Result]:
    for dtype in speed.dtypes(platform):
        yield _run(f"kernels for rows, {dtype}", functools.partial(kernels.rows, platform, dtype))
        yield _run(f"kernel for pages, {dtype}", functools.partial(kernels.pages, platform, dtype))
    for dtype in DTYPES:
        yield _run(f"gate, {dtype}", functools.partial(weights.gate, dtype))
    products = _run("matrix products", functools.partial(speed.products, platform, kind))
    yield products
    rates = products.value("tflops")
    for size in sizes:
        yield _run(f"model {size}", functools.partial(speed.model, size, platform, rates))
    item = SIZES[sizes[-1]]
    model = transformer(item.model, item.vocab_size)
    yield _run("weights to a mesh", functools.partial(weights.copies, model, jax.local_devices()))


def _run(part: str, work: Callable[[], Found]) -> Result:
    say(f"probing: {part}")
    return tried(part, work)


def sizes_of(text: str | None) -> list[Size]:
    """Returns the sizes that --size names. Raises ConfigError for another text."""
    if text == "all":
        return list(SIZES)
    found = [size for size in SIZES if size == text]
    if not found:
        raise ConfigError(f"--size={text}: expected one of {', '.join(SIZES)}, all")
    return found


class Page:
    """Writes what is known after each part: it stays, whatever the next part does to this process."""

    def __init__(self, folder: Path):
        self._folder = folder
        self.results: list[Result] = []

    def add(self, result: Result) -> None:
        self.results.append(result)
        write_atomically(self._folder / "probe.json", record(self.results).encode())
        write_atomically(self._folder / "probe.md", page(self.results).encode())

    def __str__(self) -> str:
        return page(self.results)


def main(
    argv: list[str], size: str, out: str, url: str | None, place: HostPlace | None, only_rounds: bool
) -> None:
    refuse_arguments(argv)
    sizes = sizes_of(size)
    if only_rounds and place is None:
        raise ConfigError("--only_rounds is for several hosts; give --hosts, --host and --coordinator")
    try:
        folder = folder_path(out) if place is None else folder_path(out) / f"host-{place.host}"
    except ValueError as error:
        raise ConfigError(f"--out={out} {error}") from error
    make_folder(folder)
    written = Page(folder)
    with joined(place, HEARTBEAT_S, PATIENCE_S) as hosts:
        for result in probe(sizes, url, only_rounds):
            written.add(result)
        if hosts.count > 1:
            for result in rounds.results(hosts, functools.partial(end, written, hosts.index)):
                written.add(result)
    print(written, end="")
    if any(result.found is None for result in written.results):
        sys.exit(1)


def end(written: Page, host: int, last: Sequence[Result]) -> None:
    """Ends this process, whose main thread waits for ever, after its last results."""
    for result in last:
        written.add(result)
    print(written, end="", flush=True)
    if host == 0:  # the others cannot outlive it
        time.sleep(LAST_S)
    os._exit(1)


if __name__ == "__main__":
    size = flags.DEFINE_string(
        "size", "small", f"Which model is timed: {', '.join(SIZES)}, or all of them. E.g. --size=all"
    )
    out = flags.DEFINE_string("out", ".", "The folder for probe.json and probe.md. E.g. --out=probe")
    url = flags.DEFINE_string(
        "bucket", None, "A bucket's folder, or one of a disk, to time. E.g. --bucket=gs://mine/probe"
    )
    place_flags = host_flags()
    only_rounds = flags.DEFINE_bool(
        "only_rounds", False, "Only try whether several hosts can work together. E.g. --only_rounds"
    )
    run_main(
        lambda argv: main(
            argv,
            size.value,
            out.value,
            url.value,
            place_of(*(flag.value for flag in place_flags)),
            only_rounds.value,
        )
    )
