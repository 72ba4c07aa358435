"""``python -m atgrpo_jax.evaluate --run_dir=RUN [--step=N] [--split=test] [--instances=N]``"""

import json

from absl import flags

from atgrpo_jax import config, weight_sync
from atgrpo_jax.checkpoint import Checkpoints
from atgrpo_jax.cli import run
from atgrpo_jax.engines.local import LocalEngine
from atgrpo_jax.errors import ConfigError, RunError
from atgrpo_jax.evaluation import evaluate
from atgrpo_jax.learner import Learner
from atgrpo_jax.models.transformer import Transformer
from atgrpo_jax.progress import Progress
from atgrpo_jax.run_folder import RunFolder
from atgrpo_jax.types import Sampling

_RUN_DIR = flags.DEFINE_string("run_dir", None, "The run folder.")
_STEP = flags.DEFINE_integer("step", None, "Which checkpoint; the newest if not given.")
_SPLIT = flags.DEFINE_enum("split", "test", ["train", "validation", "test"], "Whose instances.")
_INSTANCES = flags.DEFINE_integer("instances", None, "How many; the run's own number if not given.")
_TEMPERATURE = flags.DEFINE_float("temperature", None, "0 is greedy; the run's own if not given.")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise ConfigError(f"unexpected argument {argv[1]!r}; see --help")
    if _RUN_DIR.value is None:
        raise ConfigError("--run_dir is missing, e.g. --run_dir=runs/plan")
    folder = RunFolder(_RUN_DIR.value)
    if not folder.exists():
        raise RunError(f"{folder.path} holds no run")
    x = config.load(str(folder.config))
    instances = x.evaluation.instances if _INSTANCES.value is None else _INSTANCES.value
    temperature = x.evaluation.temperature if _TEMPERATURE.value is None else _TEMPERATURE.value
    if instances < 1 or temperature < 0:
        raise ConfigError("--instances must be at least 1 and --temperature not negative")

    model = Transformer(x.model, x.vocab_size)
    learner = Learner(model, x.optimizer, x.loss.objective(), x.mesh.build())
    checkpoints = Checkpoints(folder.checkpoints, x.identity(), read_only=True)
    step = checkpoints.latest() if _STEP.value is None else _STEP.value
    if step is None:
        raise RunError(f"{folder.path} has no checkpoint yet")
    states = checkpoints.restore(step, dict.fromkeys(x.policies, learner.shapes))
    engine = LocalEngine(model, x.tokenizer.stop_ids, x.engine)
    weight_sync.push(engine, {name: state.params for name, state in states.items()}, step)
    with Progress(f"{_SPLIT.value} after step {step}", instances, "episode") as progress:
        score = evaluate(
            x.task,
            x.team,
            x.tokenizer,
            engine,
            Sampling(temperature, x.rollout.max_tokens),
            seed=x.seed,
            step=step,
            split=_SPLIT.value,
            instances=instances,
            on_episode=progress.advance,
        )
    print(f"{_SPLIT.value} after step {step}: {score}")
    record = {"step": step, "split": _SPLIT.value, "temperature": temperature} | score.record()
    with open(folder.evaluations, "a", encoding="utf-8") as file:
        file.write(json.dumps(record | {"instances": instances}) + "\n")


if __name__ == "__main__":
    run(main)
