"""Compares runs: scores with intervals, paired differences, curves, and what their configs differ in.

    python -m atgrpo_jax.compare runs/plan runs/lora_0 runs/lora_1 runs/lora_2

Runs that differ in their seed alone are one group. All groups are compared with the first one. --step
compares what they scored after that step, also of runs that go on. The curves are written to compare.png
in the working directory, in place of those of the last call, unless --out names another file.
"""

from absl import flags

from atgrpo_jax.common.cli import run_main
from atgrpo_jax.common.errors import ConfigError, RunError
from atgrpo_jax.common.files import folder_path, write_atomically
from atgrpo_jax.run.folder import RunFolder
from atgrpo_jax.viewing.comparing import (
    At,
    at_step,
    curve_of,
    differences,
    figure,
    grouped,
    settings,
    table,
)
from atgrpo_jax.viewing.folders import metric_of, outline

_OUT = flags.DEFINE_string(
    "out", "compare.png", "The figure to write, in place of one that is there. E.g. --out=lora.png"
)
_CURVE = flags.DEFINE_string(
    "curve", None, "The metric of the figure; a success if not given. E.g. --curve=groups/signal"
)
_STEP = flags.DEFINE_integer(
    "step", None, "Compare by the evaluation after this step; the last test if not given. E.g. --step=70", 0
)


def main(argv: list[str]) -> None:
    if len(argv) < 3:
        raise ConfigError("give two or more run folders, e.g. compare runs/plan runs/lora")
    folders = [RunFolder(path) for path in argv[1:]]
    for folder in folders:
        if not folder.exists():
            raise RunError(f"{folder.path} holds no run")
    runs = [outline(folder) for folder in folders]
    groups = grouped(runs, At() if _STEP.value is None else at_step(runs, _STEP.value))
    curve = curve_of(groups) if _CURVE.value is None else metric_of(runs, _CURVE.value)
    print(table(groups))
    for title, lines in (("Differences", differences(groups)), ("Settings", settings(groups))):
        if lines:
            print("\n".join(["", f"{title}:", *(f"  {line}" for line in lines)]))
    path = folder_path(_OUT.value)
    write_atomically(path, figure(groups, curve))
    print(f"\n{path}: curves")


if __name__ == "__main__":
    run_main(main)
