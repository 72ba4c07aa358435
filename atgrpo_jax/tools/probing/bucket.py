"""Measures how fast a bucket is written, read and listed. A folder of a disk works as well."""

import contextlib
import importlib.util
import os
import time
import uuid
from collections.abc import Callable
from typing import Any

from etils import epath

from atgrpo_jax.common.errors import RunError
from atgrpo_jax.tools.probing.parts import Found

SMALL = 1_000  # bytes
LARGE = 64_000_000
SMALL_OBJECTS = 32
LARGE_OBJECTS = 2


def bucket(url: str) -> Found:
    """Writes objects into a folder of its own below ``url``, reads and lists them, and removes them.

    Raises RunError if gcsfs is missing, or what is read or listed is not what was written.
    """
    if url.startswith("gs://") and importlib.util.find_spec("gcsfs") is None:
        raise RunError(f"--bucket={url} needs gcsfs: pip install 'atgrpo_jax[gcs]'")
    folder = epath.Path(url) / f"atgrpo_jax-probe-{uuid.uuid4().hex[:12]}"
    if "://" not in url:
        folder.mkdir()  # buckets have no folders to make
    written: list[epath.Path] = []
    try:
        values = _rates(folder, written)
    finally:
        for path in written:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
        if "://" not in url:
            os.rmdir(folder)
    line = (
        f"64 MB: written at {values['write_mb_per_s']:,.0f} MB/s, read at {values['read_mb_per_s']:,.0f}; "
        f"1 KB: written in {values['small_write_ms']:.1f} ms, read in {values['small_read_ms']:.1f}; "
        f"{SMALL_OBJECTS} names listed in {values['list_ms']:.1f} ms"
    )
    return Found(line, {"bucket": url, **values})


def _rates(folder: epath.Path, written: list[epath.Path]) -> dict[str, float]:
    """Returns the rates. ``written`` gets the path of every object before it is written."""
    values: dict[str, float] = {}
    small = _written_and_read(folder, "small", SMALL, SMALL_OBJECTS, written)
    values["small_write_ms"], values["small_read_ms"] = (1e3 * seconds for seconds in small)
    wanted = {path.name for path in written}
    began = time.perf_counter()
    listed = {path.name for path in folder.iterdir()}
    values["list_ms"] = 1e3 * (time.perf_counter() - began)
    if listed != wanted:
        raise RunError(f"{folder}: {len(wanted)} objects were written, and others are listed: {len(listed)}")
    large = _written_and_read(folder, "large", LARGE, LARGE_OBJECTS, written)
    values["write_mb_per_s"], values["read_mb_per_s"] = (LARGE / 1e6 / seconds for seconds in large)
    return values


def _written_and_read(
    folder: epath.Path, name: str, size: int, count: int, written: list[epath.Path]
) -> tuple[float, float]:
    """Returns the seconds to write, and to read, one of ``count`` objects, one after the other."""
    paths = [folder / f"{name}-{number}" for number in range(count)]
    data = os.urandom(size)

    def write(path: epath.Path) -> None:
        written.append(path)
        path.write_bytes(data)

    def read(path: epath.Path) -> None:
        if path.read_bytes() != data:
            raise RunError(f"{path}: what is read is not what was written")

    return _each(write, paths), _each(read, paths)


def _each(call: Callable[[epath.Path], Any], paths: list[epath.Path]) -> float:
    began = time.perf_counter()
    for path in paths:
        call(path)
    return (time.perf_counter() - began) / len(paths)
