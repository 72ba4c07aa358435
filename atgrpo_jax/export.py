"""Writes a trained team for other tools, a folder OUT/<policy> for every policy.

python -m atgrpo_jax.export --run_dir=runs/plan_model --out=trained [--step=N] [--mesh=...] [--merge]

A folder holds a Hugging Face model, or a PEFT adapter if the policy is one. ``--merge`` writes
adapters merged into their base. Without it, a base that was not read from a model folder, that a warm
start has changed, or that came from another run is written as well, as OUT/base_of_adapters. A policy
that did not start from a folder gets no tokenizer files.
"""

from pathlib import Path
from typing import Any

from absl import flags

from atgrpo_jax.arrays.finite_trees import check_tree
from atgrpo_jax.arrays.mesh import parse_mesh
from atgrpo_jax.common.cli import mesh_flag, refuse_arguments, run_main
from atgrpo_jax.common.errors import ConfigError, RunError
from atgrpo_jax.models.family import Family
from atgrpo_jax.models.hf import hf
from atgrpo_jax.models.hf.adapters import save_adapter
from atgrpo_jax.models.lora import LoraConfig, merge
from atgrpo_jax.models.transformer import PolicyWeights
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


def main(argv: list[str]) -> None:
    refuse_arguments(argv)
    if _RUN_DIR.value is None or _OUT.value is None:
        raise ConfigError("--run_dir and --out are needed")
    out = Path(_OUT.value).expanduser()
    if out.exists():
        raise RunError(f"{out} exists; give another --out")
    saved = SavedRun(_RUN_DIR.value, _MESH.value and parse_mesh(_MESH.value))
    step = saved.step_of(_STEP.value)
    everything = saved.weights(step)
    bases = {name: saved.learner.source(name) for name in everything}
    x = saved.experiment
    moved = x.warm_start is not None or x.origin is not None or x.pretrained is None
    if saved.learner.adapted and moved and not _MERGE.value:
        folder = str((out / "base_of_adapters").absolute())
        name = next(iter(saved.learner.adapted))
        hf.save(folder, everything[name].params, bases[name])
        bases |= dict.fromkeys(saved.learner.adapted, folder)
        print(f"wrote {folder}")
    for name, weights in everything.items():
        family = saved.learner.models[name].family
        write(bases[name], weights, saved.experiment.lora, family, out / name, _MERGE.value)
        print(f"wrote {out / name} (step {step})")
        if (out / name / "config.json").is_file() and (note := check_read_back(out / name)):
            print(note)


def write(
    source: str | dict[str, Any],
    weights: PolicyWeights,
    lora: LoraConfig,
    family: Family,
    out: Path,
    merged: bool,
) -> None:
    """Writes the folder of one policy.

    ``source`` is the folder that the policy started from, or for an adapter the folder of its base.
    For a policy with a random start it is what config.json has to say.
    """
    params: Any = weights.params
    if weights.adapter is not None and not merged:
        assert isinstance(source, str)
        save_adapter(str(out), weights.adapter, lora, family, base=source)
        return
    if weights.adapter is not None:
        params = merge(params, weights.adapter, weights.scale)
        check_tree(params, f"{out.name}, merged", "write the adapter itself, without --merge")
    hf.save(str(out), params, source)


if __name__ == "__main__":
    run_main(main)
