"""The checkout as one archive whose bytes depend on the files alone."""

from __future__ import annotations

import gzip
import hashlib
import io
import subprocess
import tarfile
from pathlib import Path

from tpu.shell import Problem


def pack(dirty: bool, root: Path) -> tuple[str, bytes]:
    """Returns the digest and the bytes of a .tar.gz with all files that git tracks.

    Raises Problem if files were changed or added since the last commit, unless ``dirty``. Then they
    are taken as they are, but for files that git does not track: those may hold secrets.
    """
    changed = [line[3:] for line in _git(root, "status", "--porcelain").splitlines()]
    if changed and not dirty:
        raise Problem(
            f"uncommitted changes, e.g. {changed[0]}: commit them, or give --dirty to take the tracked files "
            "as they are (`git add` makes git track a new one)"
        )
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in sorted(set(_git(root, "ls-files", "-z").split("\0")) - {""}):
            if (root / name).is_symlink() or (root / name).is_file():
                archive.add(root / name, name, recursive=False, filter=_without_traces)
    digest = hashlib.sha256(plain.getvalue()).hexdigest()[:16]
    return digest, gzip.compress(plain.getvalue(), mtime=0)


def _without_traces(info: tarfile.TarInfo) -> tarfile.TarInfo:
    """Drops who packed a file and when."""
    info.uid = 0
    info.gid = 0
    info.uname = ""
    info.gname = ""
    info.mtime = 0
    info.mode = 0o755 if info.mode & 0o100 else 0o644
    return info


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, check=False)
    if done.returncode:
        raise Problem(
            f"{root} is no git checkout, and only a checkout can be sent ({done.stderr.decode().strip()})"
        )
    return done.stdout.decode(errors="surrogateescape")
