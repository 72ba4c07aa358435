"""Speed of the in-process engine, as JSON lines.

    python benchmarks/rollout.py [--item=tiny|long|vocab|skewed] [--team] [--slots=64] [--trace=FOLDER]

The work items of ``update.py``, where every sample is as long as the item says, and ``skewed``: lengths are
geometric with a mean of 64 and end at 256, 64 prompts x 8; any of a 64th of the ids ends a sample.
``--team``: training episodes of plan.gin, played by a policy that cloned a few demonstrations.

``occupancy`` is the share of the computed rows that were tokens somebody asked for; ``prefill`` and
``decode`` are shares of the time, of which the rest is the host's, tasks included; ``known_prompt`` is the
share of the prompts' tokens that were in the cache; ``products`` is what decoding would take if it were
nothing but its matrix products, of its time; ``of_memory`` is what reading the least of memory would take, at
the bandwidth that was measured in the same process, of its time (where no sample stops early).
"""

import dataclasses
import tempfile
import time

import jax
from items import decode_gb, decode_products_s, machine, mesh_of, parse, report, summary, traced

from atgrpo_jax.engines.local.local import LocalEngine
from atgrpo_jax.models.families.table import transformer
from atgrpo_jax.models.transformer import PolicyWeights, init_params
from atgrpo_jax.rollout.player import Player
from atgrpo_jax.rollout.rollout import engine_propose, play_all, train_indices
from atgrpo_jax.run.gin_config import load
from atgrpo_jax.run.metrics import CompileCounter
from atgrpo_jax.run.team_learner import TeamLearner
from atgrpo_jax.tools.budgeting.table import limits
from atgrpo_jax.tools.probing.clock import peak_mb, square_gflops


def main() -> None:
    def flags(parser):
        parser.add_argument("--team", action="store_true")
        parser.add_argument("--turns", type=int, default=4, help="of the team's episodes")
        parser.add_argument("--slots", type=int, default=64, help="of the engine")

    name, item, args = parse(__doc__, warmup=2, steps=5, more=flags)
    if args.team:
        name, (engine, play, model) = f"team, {args.turns} turns", team(args)
    else:
        engine, play, model = of_item(item, args)
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
    steps = sum(one.slot_steps for one in kept) / args.slots
    products = (
        decode_products_s(model.architecture, model.compute.dtype, model.vocab_size, args.slots) * steps
    )
    known = not (item.stop_every or args.team)
    gflop = item.gflop()["rollout"] if known else None
    decoding = sum(one.decode_s for one in kept)
    with traced(args.trace):
        play(args.warmup + args.steps)
    report(
        "rollout",
        item=name,
        data=args.data,
        **summary("rollout", seconds[args.warmup :], seconds[0], tokens // args.steps, gflop),
        occupancy=round(tokens / sum(one.slot_steps for one in kept), 3),
        prefill=round(sum(one.prefill_s for one in kept) / total, 3),
        decode=round(decoding / total, 3),
        products=round(products / decoding, 3),
        **(of_memory(item, steps / args.steps, decoding / args.steps) if known else {}),
        known_prompt=round(sum(one.known_tokens for one in kept) / sum(one.prompt_tokens for one in kept), 3),
        square_gflop_per_s=round(square_gflops(dtype=item.compute.dtype), 1),
        compiles_after_warmup=recompiled,
        peak_mb=round(peak_mb()),
        **machine(),
    )


def of_memory(item, steps, seconds):
    """The time that reading the least of memory would take, as a share of ``seconds``."""
    bandwidth = limits(item.compute.dtype).bandwidth / 1e9
    return {
        "of_memory": round(decode_gb(item, steps) / bandwidth / seconds, 3),
        "memory_gb_per_s": round(bandwidth, 1),
    }


def of_item(item, args):
    model, mesh = transformer(item.model, item.model.vocab_size, item.compute), mesh_of(args).build()
    engine = LocalEngine(model, item.stop_ids, item.engine(args.slots), mesh)
    params = jax.jit(lambda key: init_params(model, key))(jax.random.key(0))
    engine.push_weights("shared", PolicyWeights(params), 0)
    return engine, lambda step: item.drawn(engine, step), model


def team(args):
    changes = [f"workflow.Workflow.turns = {args.turns}", "warm_start.WarmStartConfig.steps = 20"]
    experiment = load("plan.gin", changes)
    with tempfile.TemporaryDirectory() as cache:
        experiment = dataclasses.replace(
            experiment, warm_start=dataclasses.replace(experiment.warm_start, cache_dir=cache)
        )
        policies = TeamLearner(experiment)
        states = policies.initial()
    config = dataclasses.replace(experiment.engine, slots=args.slots)
    engine = LocalEngine(policies.models, experiment.tokenizer.stop_ids, config, policies.meshes)
    for policy, weights in policies.weights(states).items():
        engine.push_weights(policy, weights, 0)
    sampling = experiment.rollout.sampling
    propose = engine_propose(engine, sampling, experiment.rollout.candidates, experiment.seed)
    player = Player(
        experiment.task,
        experiment.team,
        experiment.tokenizer,
        propose,
        sampling,
        experiment.seed,
        select=experiment.rollout.select,
    )

    def play(step):
        play_all(player, step + 1, "train", train_indices(step + 1, experiment.rollout.instances))

    return engine, play, policies.models[policy]


if __name__ == "__main__":
    main()
