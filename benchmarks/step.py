"""Speed of one on-policy step: rollout tokens/s, update tokens/s and step seconds, as JSON lines.

    python benchmarks/step.py [--prompts 8 --candidates 8 --prompt_tokens 64 --new_tokens 64]

The work item: 8 prompts x 8 candidates, 64 + 64 tokens, nothing stops early, float32, one AdamW update on
all of it; a random Qwen3-architecture model of 4 layers, width 256, 8 query and 4 key heads, vocabulary 4,096
(4.2 million parameters). Rollout tokens are new tokens; update tokens count every row in full (prompt and
answer, 8,192), as trainers do that do not share prompts, so that figures can be put side by side.
``share`` is of the float32 matrix product rate measured in the same run.
"""

import argparse
import asyncio
import json
import platform
import resource
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from atgrpo_jax.batch import BatchConfig, pack
from atgrpo_jax.engines.base import Request
from atgrpo_jax.engines.local import LocalEngine, LocalEngineConfig
from atgrpo_jax.groups import Credited
from atgrpo_jax.learner import Learner, LossConfig, OptimizerConfig
from atgrpo_jax.mesh import MeshConfig
from atgrpo_jax.metrics import CompileCounter
from atgrpo_jax.models.config import ModelConfig
from atgrpo_jax.models.transformer import Transformer
from atgrpo_jax.types import Address, Candidate, Group, GroupKey, Origin, Outcome, Sampling

VOCAB = 4096
MODEL = ModelConfig(layers=4, width=256, mlp_width=768, heads=8, kv_heads=4, head_size=32, rope_theta=1e6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, default in (
        ("prompts", 8), ("candidates", 8), ("prompt_tokens", 64), ("new_tokens", 64),
        ("warmup", 2), ("steps", 9),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()

    model = Transformer(MODEL, VOCAB)
    learner = Learner(
        model, OptimizerConfig(learning_rate=1e-4), LossConfig().objective(), MeshConfig().build()
    )
    state = learner.init(jax.random.key(0))
    engine = LocalEngine(model, (), LocalEngineConfig(groups=args.prompts))
    sampling = Sampling(1.0, args.new_tokens)
    rng = np.random.default_rng(0)
    prompts = rng.integers(0, VOCAB, (args.prompts, args.prompt_tokens)).tolist()
    # Two groups a row: no row is cut, and few scores are computed to be masked.
    row = 2 * (args.prompt_tokens + args.candidates * args.new_tokens)
    batch_config = BatchConfig(row_tokens=row, rows=2)
    compiles, seconds = CompileCounter(), {"rollout": [], "update": [], "step": []}
    compiled = 0
    for step in range(args.warmup + args.steps):
        began = time.perf_counter()
        engine.push_weights("shared", learner.weights(state.params), step)
        drawn = asyncio.run(rollout(engine, prompts, args.candidates, sampling, step))
        sampled = time.perf_counter()
        items = [credit(p, samples, sampling, rng) for p, samples in zip(prompts, drawn, strict=True)]
        packed = time.perf_counter()
        batch = pack(items, batch_config, "candidate", args.new_tokens)
        state, metrics = learner.update(state, batch, 1.0)
        jax.block_until_ready((state, metrics))
        ended = time.perf_counter()
        seconds["rollout"].append(sampled - began)
        seconds["update"].append(ended - packed)
        seconds["step"].append(ended - began)
        compiled = compiles.count if step < args.warmup else compiled
    rows = args.prompts * args.candidates
    tokens = {
        "rollout": rows * args.new_tokens,
        "update": rows * (args.prompt_tokens + args.new_tokens),
        "step": rows * args.new_tokens,
    }
    recompiled = compiles.count - compiled
    rate = matmul_gflops()
    for phase, kept in ((name, values[args.warmup :]) for name, values in seconds.items()):
        median = statistics.median(kept)
        gflop = work(args)[phase]
        report(
            phase=phase,
            tokens_per_s=round(tokens[phase] / median, 1),
            seconds=round(median, 4),
            seconds_range=[round(min(kept), 4), round(max(kept), 4)],
            first_s=round(seconds[phase][0], 2),
            gflop=round(gflop, 1),
            gflop_per_s=round(gflop / median, 1),
            share=round(gflop / median / rate, 3),
        )
    report(
        matmul_gflop_per_s=round(rate, 1),
        compiles_after_warmup=recompiled,
        peak_rss_mb=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        device=jax.devices()[0].device_kind,
        jax=jax.__version__,
        python=platform.python_version(),
        item=vars(args),
    )


async def rollout(engine, prompts, candidates, sampling, step):
    def request(i, prompt):
        key = GroupKey(step, "train", i, 0, 0, "role")
        addresses = tuple(Address(0, key, k) for k in range(candidates))
        return Request("shared", tuple(prompt), addresses, sampling)

    return await asyncio.gather(*(engine.sample(request(i, p)) for i, p in enumerate(prompts)))


def credit(prompt, samples, sampling, rng) -> Credited:
    """The group with random advantages: a cheap reward that makes every token train."""
    key = GroupKey(0, "train", 0, 0, 0, "role")
    origin = Origin(key, tuple(prompt), "", "shared", 0, sampling)
    group = Group(tuple(Candidate(origin, s, "", Outcome.OK, None) for s in samples), 0)
    advantages = rng.standard_normal(len(samples)).astype(np.float32)
    return Credited(group, advantages, np.ones(len(samples), bool))


def work(args) -> dict[str, float]:
    """GFLOP that have to be done: prompts once a group, attention over the causal span, the head on
    sampled positions only; forward and backward for the update."""
    m, P, C = MODEL, args.prompt_tokens, args.new_tokens
    q, kv = m.heads * m.head_size, m.kv_heads * m.head_size
    dense = m.layers * m.width * (2 * q + 2 * kv + 3 * m.mlp_width)
    head, span = m.width * VOCAB, 4 * m.layers * q
    rows = args.prompts * args.candidates
    prefill = args.prompts * P * (2 * dense + span * P / 2)
    branches = rows * C * (2 * (dense + head) + span * (P + C / 2))
    rollout, update = (prefill + branches) / 1e9, 3 * (prefill + branches) / 1e9
    return {"rollout": rollout, "update": update, "step": rollout + update}


def matmul_gflops(size: int = 2048, repeats: int = 9) -> float:
    x = jnp.ones((size, size))
    multiply = jax.jit(jnp.matmul)
    multiply(x, x).block_until_ready()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        multiply(x, x).block_until_ready()
        times.append(time.perf_counter() - began)
    return 2 * size**3 / statistics.median(times) / 1e9


def report(**values) -> None:
    print(json.dumps({"benchmark": "step"} | values), flush=True)


if __name__ == "__main__":
    main()
