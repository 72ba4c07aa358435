"""Speed and memory of one update, as JSON lines.

    python benchmarks/update.py [--item=tiny|long|vocab|qwen3-0.6b|qwen3-1.7b] [--trace=FOLDER]

tiny: 8 prompts x 8 candidates, 64 + 64 tokens, a random Qwen3-architecture model of 4 layers, width 256, 8
query and 4 key heads, vocabulary 4,096, float32; one clipped AdamW update. long: prompts of 1,024 tokens.
vocab: a vocabulary of 151,936. The other two are for accelerators, in bfloat16.

Tokens count every candidate in full, prompt and answer, as trainers do that do not share prompts, so that
figures can be put side by side. ``gflop`` counts what has to be done, each prompt once. ``share`` is of the
rate at which the update's own matrix products run alone, measured in the same process. ``of_peak`` is of the
published rate of a known device.
"""

import time

import jax
from items import machine, mesh_of, of_peak, parse, report, shapes_gflops, summary, traced

from atgrpo_jax.models.families.table import transformer
from atgrpo_jax.run.metrics import CompileCounter
from atgrpo_jax.tools.probing.clock import peak_mb, square_gflops
from atgrpo_jax.update.batch import pack
from atgrpo_jax.update.learner import Learner, UpdateInputs
from atgrpo_jax.update.objectives import LossConfig
from atgrpo_jax.update.optimizer import OptimizerConfig


def main() -> None:
    name, item, args = parse(__doc__, warmup=3, steps=9)
    mesh = mesh_of(args)
    learner = Learner(
        transformer(item.model, item.model.vocab_size, item.compute),
        OptimizerConfig(learning_rate=1e-4, b2=0.999, weight_decay=0.01),
        LossConfig().objective(),
        mesh.build(),
    )
    state = jax.block_until_ready(learner.init(jax.random.key(0)))
    compiles, compiled, seconds = CompileCounter(), 0, []
    for step in range(args.warmup + args.steps):
        items = item.credited(step, item.prompt_ids(step), item.random_samples(step))
        batch = pack(items, item.batch(), "candidate", item.new_tokens)
        began = time.perf_counter()
        state, metrics = learner.update(state, UpdateInputs(batch))
        jax.block_until_ready((state, metrics))
        seconds.append(time.perf_counter() - began)
        compiled = compiles.count if step < args.warmup else compiled
    with traced(args.trace):
        jax.block_until_ready(learner.update(state, UpdateInputs(batch)))
    peak, recompiled = peak_mb(), compiles.count - compiled
    gflop, rate = item.gflop()["update"], shapes_gflops(item)
    kept = summary("update", seconds[args.warmup :], seconds[0], item.tokens, gflop)
    report(
        "update",
        item=name,
        data=args.data,
        **kept,
        share=round(kept["gflop_per_s"] / rate, 3),
        **of_peak(kept["gflop_per_s"]),
        matmul_gflop_per_s=round(rate, 1),
        square_gflop_per_s=round(square_gflops(dtype=item.compute.dtype), 1),
        peak_mb=round(peak),
        compiles_after_warmup=recompiled,
        **machine(),
    )


if __name__ == "__main__":
    main()
