"""Measures experts that are dealt to 1, 2, 4 and 8 devices: FLOP and bytes of each, as compiled.

python benchmarks/experts.py [--ways=1,2,4,8]

The first table is of one layer, forward and backward. ``done`` is the FLOP of the blocks of the
device that has most of them; the compiler's count of one block is checked against it. ``needed`` is
that of each token with its experts, nothing made twice, evenly divided. ``ragged_dot`` is the
compiler's count for the same layer by ``jax.lax.ragged_dot``. Bytes that are exchanged are those of
results, of exchange among several devices.

The second table is of a small model's whole update: what a device holds, and what the update takes.
"""

import argparse
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from atgrpo_jax.arrays.mesh import ROWS, MeshConfig, provide_devices
from atgrpo_jax.models import experts
from atgrpo_jax.models.config import Architecture, Experts
from atgrpo_jax.models.experts import Stacks, by_experts
from atgrpo_jax.models.families.table import transformer
from atgrpo_jax.planning.footprint import bytes_a_device
from atgrpo_jax.tools.probing.clock import median_seconds
from atgrpo_jax.update.batch import BatchConfig, pack
from atgrpo_jax.update.learner import Learner, UpdateInputs
from atgrpo_jax.update.objectives import LossConfig
from atgrpo_jax.update.optimizer import OptimizerConfig

SIZES = Experts(count=32, chosen=4, width=96)
WIDTH, TOKENS = 128, 4096
BATCH = BatchConfig(row_tokens=256, rows=8)
MODEL = Architecture(4, WIDTH, 384, 4, 4, 32, 1024, "qwen3_moe", experts=SIZES)
ITEM_BYTES = {"f32": 4, "s32": 4, "u32": 4, "pred": 1}


def inputs(mesh: Any) -> tuple[Any, ...]:
    keys = jax.random.split(jax.random.key(0), 5)
    h_BTD = jax.random.normal(keys[0], (8, TOKENS // 8, WIDTH))
    scores_BTE = 3 * jax.random.normal(keys[1], (8, TOKENS // 8, SIZES.count))
    share_BTC, chosen_BTC = jax.lax.top_k(jax.nn.softmax(scores_BTE), SIZES.chosen)
    wide, narrow = (SIZES.count, WIDTH, SIZES.width), (SIZES.count, SIZES.width, WIDTH)
    shapes = zip(keys[2:], (wide, wide, narrow), strict=True)
    stacks = Stacks(*(jax.random.normal(key, shape) / 10 for key, shape in shapes))
    rows, dealt = NamedSharding(mesh, P(ROWS)), NamedSharding(mesh, P("expert"))
    return (*jax.device_put((h_BTD, share_BTC, chosen_BTC), rows), jax.device_put(stacks, dealt))


def ragged(h_BTD: jax.Array, share_BTC: jax.Array, chosen_BTC: jax.Array, stacks: Stacks) -> jax.Array:
    """Returns what ``by_experts`` does on one device."""
    order_X = jnp.argsort(chosen_BTC.reshape(-1))
    counts_E = jnp.bincount(chosen_BTC.reshape(-1), length=SIZES.count).astype(jnp.int32)
    h_XD = h_BTD.reshape(-1, WIDTH)[order_X // SIZES.chosen]
    gate_XF, up_XF = (jax.lax.ragged_dot(h_XD, stack, counts_E) for stack in stacks[:2])
    out_XD = jax.lax.ragged_dot(jax.nn.silu(gate_XF) * up_XF, stacks.down_EFD, counts_E)
    out_BTCD = out_XD[jnp.argsort(order_X)].reshape(*chosen_BTC.shape, -1)
    return jnp.einsum("btcd,btc->btd", out_BTCD, share_BTC)


def compiled(layer: Any, given: tuple[Any, ...]) -> Any:
    def loss(*inputs):
        return jnp.sum(jnp.sin(layer(*inputs)))

    return jax.jit(jax.value_and_grad(loss, (0, 1, 3))).lower(*given).compile()


def exchanged(program: Any) -> int:
    """Returns the bytes of a device's results of exchange, each instruction counted once."""
    total = 0
    for line in program.as_text().splitlines():
        found = re.search(r"= (.*?) (all-gather|all-reduce|reduce-scatter|all-to-all)\(", line)
        if found and not re.search(r"replica_groups=(\{\{0\}|\[\d+,1\])", line):
            for kind, shape in re.findall(r"(f32|s32|u32|pred)\[([\d,]*)\]", found[1]):
                total += ITEM_BYTES[kind] * int(np.prod([int(n) for n in shape.split(",") if n], dtype=int))
    return total


def layer_line(ways: int) -> str:
    mesh = MeshConfig(expert=ways).build()
    given = inputs(mesh)
    chosen_BTC, stacks = given[2:]
    program = compiled(lambda *inputs: by_experts(mesh, jax.nn.silu, *inputs), given)
    size = experts._block_size(mesh, chosen_BTC, stacks)
    blocks_E = -(-np.bincount(np.asarray(chosen_BTC).ravel(), minlength=SIZES.count) // size)
    block = 2 * 11 * size * WIDTH * SIZES.width  # three products forward, and eight backward
    counted = program.cost_analysis()["flops"]
    assert block < counted < 1.5 * block, (block, counted)
    done = blocks_E.reshape(ways, -1).sum(axis=1).max() * block
    needed = 2 * 9 * TOKENS * SIZES.chosen * WIDTH * SIZES.width / ways
    m = program.memory_analysis()
    took = median_seconds(lambda: program(*given), 3)
    return (
        f"{ways:4} {needed / 1e6:10.0f} {done / 1e6:10.0f} {m.argument_size_in_bytes / 1e6:10.2f} "
        f"{m.temp_size_in_bytes / 1e6:10.2f} {exchanged(program) / 1e6:10.2f} {took * 1e3:8.0f}"
    )


def update_line(ways: int) -> str:
    assert MODEL.vocab_size is not None
    mesh = MeshConfig(expert=ways).build()
    model = transformer(MODEL, MODEL.vocab_size)
    learner = Learner(model, OptimizerConfig(), LossConfig().objective(), mesh)
    (program,) = learner.compile(UpdateInputs(pack([], BATCH, "token", 1)))
    m = program.memory_analysis()
    return (
        f"{ways:4} {bytes_a_device(learner.shapes) / 1e6:10.2f} {m.argument_size_in_bytes / 1e6:10.2f} "
        f"{m.temp_size_in_bytes / 1e6:10.2f} {exchanged(program) / 1e6:10.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--ways", default="1,2,4,8")
    ways = [int(one) for one in parser.parse_args().ways.split(",")]
    provide_devices(8)
    print(f"a layer, {TOKENS} tokens, {SIZES}, width {WIDTH}; MFLOP and MB of a device, ms of all")
    print("ways     needed       done  arguments      temps  exchanged       ms")
    print("\n".join(map(layer_line, ways)))
    program = compiled(ragged, inputs(MeshConfig().build()))
    flop, temps = program.cost_analysis()["flops"], program.memory_analysis().temp_size_in_bytes
    print(f"ragged_dot: {flop / 1e6:.0f} MFLOP, {temps / 1e6:.0f} MB of temps on one device")
    print(f"an update, {MODEL.layers} layers, {BATCH}; MB of a device")
    print("ways      state  arguments      temps  exchanged")
    print("\n".join(map(update_line, ways)))


if __name__ == "__main__":
    main()
