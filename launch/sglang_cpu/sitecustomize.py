"""For servers that tests start on a CPU: lets ``sglang`` be imported without triton and CUDA's torchvision.

Test-only. None of what is stood in for is called: without a GPU every layer takes its plain torch path.
"""

import importlib.machinery
import sys
import types


class _Empty:
    def __init__(self, *_args, **_kwargs):
        pass

    def __init_subclass__(cls, **_kwargs):
        pass


class _Triton(types.ModuleType):
    """A module in which every capitalised name is a class and every other one a module or a decorator."""

    def __init__(self, name: str):
        super().__init__(name)
        self.__path__: list[str] = []
        self.__version__ = "3.0.0"
        self.__file__ = __file__

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        value = type(name, (_Empty,), {}) if name[0].isupper() else _Triton(f"{self.__name__}.{name}")
        setattr(self, name, value)
        return value

    def __call__(self, *args, **kwargs):
        return args[0] if len(args) == 1 and callable(args[0]) and not kwargs else lambda function: function


class _Loader:
    def create_module(self, spec):
        return _Triton(spec.name)

    def exec_module(self, module):
        parent, _, own = module.__name__.rpartition(".")
        if parent:
            setattr(sys.modules[parent], own, module)


class _Finder:
    library = None

    def find_spec(self, name, path=None, target=None):
        if name == "triton" or name.startswith("triton."):
            return importlib.machinery.ModuleSpec(name, _Loader(), is_package=True)
        if name == "torchvision" and _Finder.library is None:
            import torch

            _Finder.library = torch.library.Library("torchvision", "DEF")
            for operator in ("nms", "qnms"):
                _Finder.library.define(f"{operator}(Tensor dets, Tensor scores, float threshold) -> Tensor")
        return None


sys.meta_path.insert(0, _Finder())
