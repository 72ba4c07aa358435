"""What the tests of the sglang-jax engine share, with sglang-jax and without."""

import dataclasses

from fakes import SMALL

from atgrpo_jax.common.types import Address, GroupKey, Sampling
from atgrpo_jax.engines.protocol import Request
from atgrpo_jax.engines.sglang_jax.sglang_jax import (
    SGLangJaxConfig,
)
from atgrpo_jax.models.families.table import transformer

STOP = 3
MODEL = transformer(dataclasses.replace(SMALL, head_size=128, heads=2, kv_heads=1, tied=False), 96)
SIZES = SGLangJaxConfig(
    context_length=160, max_running_requests=16, max_total_tokens=2048, prefill=128, batches=(16,)
)


def request(prompt, instance=0, k=3, step=1, policy="a", **sampling):
    key = GroupKey(step, "train", instance, 0, 0, "a")
    addresses = tuple(Address(0, key, i) for i in range(k))
    return Request(policy, tuple(prompt), addresses, Sampling(**({"max_tokens": 8} | sampling)))
