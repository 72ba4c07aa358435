"""Speed of one on-policy step: rollout tokens/s, update tokens/s and step seconds, as JSON lines.

    python benchmarks/step.py [--item=tiny|long|vocab|qwen3-0.6b|qwen3-1.7b]

The items are those of update.py. Rollout tokens are new tokens; update tokens count every candidate in full.
``share`` is of the rate of square matrix products measured in the same process.
"""

import time

import jax
from items import machine, mesh_of, parse, report, summary

from atgrpo_jax.engines.local.local import LocalEngine
from atgrpo_jax.models.families.table import transformer
from atgrpo_jax.run.metrics import CompileCounter
from atgrpo_jax.tools.probing.clock import peak_mb, square_gflops
from atgrpo_jax.update.batch import pack
from atgrpo_jax.update.learner import Learner, UpdateInputs
from atgrpo_jax.update.objectives import LossConfig
from atgrpo_jax.update.optimizer import OptimizerConfig


def main() -> None:
    name, item, args = parse(__doc__, warmup=2, steps=9)
    mesh = mesh_of(args).build()
    model = transformer(item.model, item.model.vocab_size, item.compute)
    learner = Learner(model, OptimizerConfig(learning_rate=1e-4), LossConfig().objective(), mesh)
    state = learner.init(jax.random.key(0))
    engine = LocalEngine(model, (), item.engine(), mesh)
    compiles, compiled = CompileCounter(), 0
    seconds: dict[str, list[float]] = {"rollout": [], "update": [], "step": []}
    for step in range(args.warmup + args.steps):
        began = time.perf_counter()
        engine.push_weights("shared", learner.weights(state.params), step)
        drawn = item.drawn(engine, step)
        sampled = time.perf_counter()
        batch = pack(
            item.credited(step, item.prompt_ids(step), drawn), item.batch(), "candidate", item.new_tokens
        )
        packed = time.perf_counter()
        state, metrics = learner.update(state, UpdateInputs(batch))
        jax.block_until_ready((state, metrics))
        ended = time.perf_counter()
        seconds["rollout"].append(sampled - began)
        seconds["update"].append(ended - packed)
        seconds["step"].append(ended - began)
        compiled = compiles.count if step < args.warmup else compiled
    peak, recompiled, rate = peak_mb(), compiles.count - compiled, square_gflops(dtype=item.compute.dtype)
    tokens = {"rollout": item.new, "update": item.tokens, "step": item.new}
    for phase, all_ in seconds.items():
        kept = summary(phase, all_[args.warmup :], all_[0], tokens[phase], item.gflop()[phase])
        report("step", item=name, **kept, share=round(kept["gflop_per_s"] / rate, 3))
    report(
        "step",
        item=name,
        data=args.data,
        square_gflop_per_s=round(rate, 1),
        compiles_after_warmup=recompiled,
        peak_mb=round(peak),
        **machine(),
    )


if __name__ == "__main__":
    main()
