"""Reads the tensors of a Hugging Face folder: finds their files, and names them in every error."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from atgrpo_jax.common.errors import RunError
from atgrpo_jax.common.jsonfile import Fields, check_file, read_object, short

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_READ = ("F32", "F16", "BF16")


class Tensors:
    """Iterates over the names of a folder's tensors, and gives parts of each by its name.

    As in ``transformers``, a single file comes before an index. Of an index, only the names of the
    files are read; each file says itself which tensors it holds.

    Raises RunError for a folder without such files, with two sets of them, or with one that cannot
    be read.
    """

    def __init__(self, root: Path):
        self.root = root
        self._files: dict[str, Path] = {}
        for path in _files(root):
            with opened(path) as file:
                for name in file.keys():  # noqa: SIM118  (no mapping)
                    if name in self._files:
                        both = f"{self._files[name].name} and {path.name}"
                        raise RunError(f"{root} has tensor {name} twice, in {both}; which is meant?")
                    self._files[name] = path

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def slices(self, name: str, shape: tuple[int, ...]) -> "Slices":
        """Opens a tensor. Raises RunError if its shape is another, or we do not read its dtype."""
        return Slices(self.root, name, self._files[name], shape)


class Slices:
    """Reads one tensor part by part. Its file stays open as long as this object lives."""

    def __init__(self, root: Path, name: str, path: Path, shape: tuple[int, ...]):
        self._what = f"{root}: tensor {name}"
        self._file = opened(path)
        self._part = self._file.get_slice(name)
        found = tuple(self._part.get_shape())
        dtype = self._part.get_dtype()
        if found != shape:
            raise RunError(f"{self._what} is {found}, expected {shape}")
        if dtype not in _READ:
            raise RunError(f"{self._what} has dtype {dtype}, expected a float one of {', '.join(_READ)}")

    def read(self, index: tuple[slice, ...], dtype: Any) -> np.ndarray:
        """Returns a part as ``dtype``. Raises RunError if it is unreadable or not finite then."""
        try:
            values = np.asarray(self._part[index]).astype(dtype, copy=False)
        except (OSError, SafetensorError) as error:
            raise RunError(f"{self._what} cannot be read ({error})") from error
        bad = values.size - int(np.isfinite(values).sum()) if values.size else 0
        if bad:
            raise RunError(f"{self._what} has {bad} numbers that are not finite; the folder is damaged")
        return values


def same(first: Slices, second: Slices, rows: int) -> bool:
    """Returns whether two matrices are equal. Reads about a thousand rows at a time."""
    whole = slice(None)
    for start in range(0, rows, 1024):
        part = (slice(start, min(start + 1024, rows)), whole)
        if not np.array_equal(first.read(part, np.float32), second.read(part, np.float32)):
            return False
    return True


def _files(root: Path) -> list[Path]:
    if (root / "adapter_config.json").exists():
        raise RunError(
            f"{root} holds an adapter (adapter_config.json); merge it into its model and give that folder "
            "(export --merge writes such folders)"
        )
    single = root / SINGLE
    index = root / INDEX
    if single.exists():
        shards = sorted(root.glob("model-*-of-*.safetensors"))
        if shards:
            raise RunError(
                f"{root} has both {SINGLE} and {shards[0].name}; remove the ones that are not meant"
            )
        return [single]
    if not index.exists():
        raise RunError(f"{single} cannot be read (there is none, and no {INDEX}); {_instead(root)}")
    names = Fields(index, read_object(index)).part("weight_map")
    if not names:
        raise RunError(f"{index}: weight_map is missing or empty")
    files = {_text(index, name) for name in names.values()}
    return [_inside(root, index, file) for file in sorted(files)]


def _instead(root: Path) -> str:
    others = sorted(p.name for kind in ("*.bin", "*.pt", "*.pth", "*.gguf") for p in root.glob(kind))
    if others:
        return f"{others[0]} is not read; save the model as safetensors"
    return "is the folder complete?"


def _text(index: Path, name: Any) -> str:
    if type(name) is not str:
        raise RunError(f"{index}: weight_map names {short(name)}; expected the name of a file")
    return name


def _inside(root: Path, index: Path, name: str) -> Path:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or path.suffix != ".safetensors":
        raise RunError(f"{index}: weight_map names {short(name)}; expected a .safetensors file of the folder")
    return root / path


def opened(path: Path) -> Any:
    """Opens a file of tensors. Raises RunError if it is missing, cut short or no safetensors."""
    check_file(path)
    try:
        return safe_open(path, "np")
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path} cannot be read ({error}); is the folder complete?") from error
