"""Speed of the in-process engine, as JSON lines.

    python benchmarks/rollout.py [--item=tiny|long|vocab] [--skewed] [--team]

The work items of ``update.py``: every sample is as long as the item says. ``--skewed``: lengths are geometric
with a mean of 64 and end at 256, 64 prompts x 8; any of a 64th of the ids ends a sample. ``--team``: training
episodes of plan.gin, played by a policy that cloned a few demonstrations.

``occupancy`` is the share of the computed rows that were tokens somebody asked for; ``drawing`` the share of
the time that the engine took, and not the tasks.
"""

import asyncio
import dataclasses
import tempfile
import time

import jax
from items import machine, mesh_of, parse, peak_mb, report, square_gflops, summary
from step import rollout

from atgrpo_jax.config import load
from atgrpo_jax.engines.local import LocalEngine, LocalEngineConfig
from atgrpo_jax.metrics import CompileCounter
from atgrpo_jax.models.transformer import Transformer, Weights, init_params
from atgrpo_jax.policies import Policies
from atgrpo_jax.rollout import Player, engine_propose, play_all, train_indices

SKEWED = {"prompts": 64, "new_tokens": 256}
MEAN = 64


def main() -> None:
    def flags(parser):
        parser.add_argument("--skewed", action="store_true")
        parser.add_argument("--team", action="store_true")

    name, item, args = parse(__doc__, warmup=2, steps=5, more=flags)
    if args.team:
        name, (engine, play) = "team", team()
    else:
        if args.skewed:
            name, item = f"{name}, skewed", dataclasses.replace(item, **SKEWED)
        engine, play = of_item(item, range(0, item.model.vocab_size, MEAN) if args.skewed else (), args)
    compiles, compiled, seconds, used = CompileCounter(), 0, [], []
    for step in range(args.warmup + args.steps):
        before, began = engine.usage, time.perf_counter()
        play(step)
        seconds.append(time.perf_counter() - began)
        used.append(engine.usage - before)
        compiled = compiles.count if step < args.warmup else compiled
    recompiled = compiles.count - compiled
    kept, total = used[args.warmup :], sum(seconds[args.warmup :])
    tokens = sum(one.tokens for one in kept)
    gflop = item.gflop()["rollout"] if not (args.skewed or args.team) else None
    report(
        "rollout",
        item=name,
        data=args.data,
        **summary("rollout", seconds[args.warmup :], seconds[0], tokens // args.steps, gflop),
        occupancy=round(tokens / sum(one.places for one in kept), 3),
        drawing=round(sum(one.seconds for one in kept) / total, 3),
        square_gflop_per_s=round(square_gflops(dtype=item.model.dtype), 1),
        compiles_after_warmup=recompiled,
        peak_mb=round(peak_mb()),
        **machine(),
    )


def of_item(item, stop_ids, args):
    model, mesh = Transformer(item.model, item.model.vocab_size), mesh_of(args).build()
    config = LocalEngineConfig(rows=64, max_prompt=item.prompt_tokens)
    engine = LocalEngine(model, stop_ids, config, mesh)
    params = jax.jit(lambda key: init_params(model, key))(jax.random.key(0))
    engine.push_weights("shared", Weights(params), 0)
    return engine, lambda step: asyncio.run(rollout(engine, item.prompt_ids(step), item, step))


def team():
    x = load("plan.gin", ["warm_start.WarmStartConfig.steps = 20"])
    with tempfile.TemporaryDirectory() as cache:
        x = dataclasses.replace(x, warm_start=dataclasses.replace(x.warm_start, cache_dir=cache))
        policies = Policies(x)
        states = policies.start()
    engine = LocalEngine(policies.models, x.tokenizer.stop_ids, x.engine, policies.meshes)
    for policy, weights in policies.weights(states).items():
        engine.push_weights(policy, weights, 0)
    sampling = x.rollout.sampling
    propose = engine_propose(engine, sampling, x.rollout.candidates, x.seed)
    player = Player(x.task, x.team, x.tokenizer, propose, sampling, x.seed, x.rollout.select)

    def play(step):
        play_all(player, step + 1, "train", train_indices(step + 1, x.rollout.instances))

    return engine, play


if __name__ == "__main__":
    main()
