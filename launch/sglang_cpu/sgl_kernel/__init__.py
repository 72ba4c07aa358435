"""Stands in for sglang's CUDA kernels, and keeps torch from pinning memory, which takes a GPU. Test-only."""

import functools

import torch

__version__ = "0.0.0"


def __getattr__(name: str):
    if name.startswith("__"):
        raise AttributeError(name)

    def missing(*_args, **_kwargs):
        raise NotImplementedError(f"sgl_kernel.{name} has no CPU version")

    return missing


def _unpinned(make):
    @functools.wraps(make)
    def wrapped(*args, pin_memory=False, **kwargs):
        return make(*args, **kwargs)

    return wrapped


for _name in ("empty", "zeros", "ones", "full", "tensor"):
    setattr(torch, _name, _unpinned(getattr(torch, _name)))
torch.Tensor.pin_memory = lambda self, *_args: self
