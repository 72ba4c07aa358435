"""Writes a trained team for other tools, a folder OUT/<policy> for every policy.

python -m atgrpo_jax.export --run_dir=runs/plan_model --out=trained [--step=N] [--mesh=...] [--merge]
    [--dtype=float32]

A folder holds a Hugging Face model, or a PEFT adapter if the policy is one, and README.md, a model card.
``--merge`` writes adapters merged into their base. Without it, a base that was not read from a model
folder, that is not there any more, that a warm start has changed, or that came from another run is written
as well, as OUT/base_of_adapters. Each folder has the tokenizer of the run, its chat template, and the ids
at which samples ended. That of a TinyTokenizer is read by `evaluate --model` alone; one of your own is in
no folder.

One line for each policy says how many of its weights differ from those of step 0, once they are rounded as
``--dtype`` says. Small updates are less than a step of bfloat16; float32 keeps all of them.
"""

from pathlib import Path

from absl import flags

from atgrpo_jax.arrays.mesh import parse_mesh
from atgrpo_jax.common.cli import mesh_flag, refuse_arguments, run_main
from atgrpo_jax.common.errors import ConfigError, RunError
from atgrpo_jax.models.hf import hf
from atgrpo_jax.run.exporting import Export
from atgrpo_jax.run.saved import SavedRun
from atgrpo_jax.tools.read_back import check_read_back

_RUN_DIR = flags.DEFINE_string("run_dir", None, "The run folder. E.g. --run_dir=runs/plan_model")
_OUT = flags.DEFINE_string("out", None, "The folder to write, which must not exist yet. E.g. --out=trained")
_MESH = mesh_flag()
_STEP = flags.DEFINE_string(
    "step",
    None,
    "Which checkpoint: a number, or best, by validation; the newest if it is not given. E.g. --step=30",
)
_MERGE = flags.DEFINE_bool("merge", False, "Write adapters merged into their base. E.g. --merge")
_DTYPE = flags.DEFINE_enum(
    "dtype",
    "stored",
    ["stored", *hf.DTYPES],
    "The type of the numbers; stored is that of the folder that the policy started from, and float32 for "
    "adapters. E.g. --dtype=float32",
)


def main(argv: list[str]) -> None:
    refuse_arguments(argv)
    if _RUN_DIR.value is None or _OUT.value is None:
        raise ConfigError("--run_dir and --out are needed")
    out = Path(_OUT.value).expanduser()
    if out.exists():
        raise RunError(f"{out} exists; give another --out")
    saved = SavedRun(_RUN_DIR.value, _MESH.value and parse_mesh(_MESH.value))
    step = saved.step_of(_STEP.value)
    dtype = None if _DTYPE.value == "stored" else _DTYPE.value
    Export(saved, step, out, _MERGE.value, dtype, check_read_back).write()


if __name__ == "__main__":
    run_main(main)
