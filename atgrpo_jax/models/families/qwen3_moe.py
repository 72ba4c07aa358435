"""Defines Qwen3's mixtures of experts: Qwen3, but a router chooses a few of many MLPs for each token.

Axis letters beyond the package's: J adapters, E experts, C experts that a token is given to.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from atgrpo_jax.common.checks import require
from atgrpo_jax.common.jsonfile import Fields
from atgrpo_jax.models.config import Architecture, Experts
from atgrpo_jax.models.experts import Stacks, by_experts
from atgrpo_jax.models.families import dense, llama
from atgrpo_jax.models.layers import KERNEL, OUT_KERNEL


class Stack(nn.Module):
    """Holds one matrix for each expert."""

    shape: tuple[int, ...]  # [E, in, out]
    initializer: Callable
    param_dtype: str

    @nn.compact
    def __call__(self) -> jax.Array:
        def fresh(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
            keys = jax.random.split(key, shape[0])
            return jax.vmap(lambda own: self.initializer(own, shape[1:], dtype))(keys)

        return self.param("kernel", fresh, self.shape, jnp.dtype(self.param_dtype))


class Block(llama.Qwen3Block):
    def mlp(self, h_BTD: jax.Array, scale_BJ: jax.Array | None, activation: Callable) -> jax.Array:
        experts = self.architecture.experts
        assert experts is not None
        scores_BTE = self.linear("router", h_BTD, None, experts.count)  # which has no adapter
        share_BTC, chosen_BTC = jax.lax.top_k(jax.nn.softmax(scores_BTE.astype(jnp.float32)), experts.chosen)
        if experts.normed:
            share_BTC /= jnp.sum(share_BTC, axis=-1, keepdims=True)
        stacks = Stacks(*(self._stack(name, h_BTD.dtype) for name in STACKS))
        share_BTC = share_BTC.astype(h_BTD.dtype)
        return by_experts(self.mesh, activation, h_BTD, share_BTC, chosen_BTC, stacks)

    def _stack(self, name: str, dtype: Any) -> jax.Array:
        init = OUT_KERNEL if name == "expert_down" else KERNEL
        shape = _kernels(self.architecture)[name]
        return Stack(shape, init, self.compute.param_dtype, name=name)().astype(dtype)


STACKS = ("expert_gate", "expert_up", "expert_down")
_ATTENTION = (*dense.QKV, "o")


def _kernels(c: Architecture) -> dict[str, tuple[int, ...]]:
    assert c.experts is not None
    sizes = c.experts.count, c.experts.width
    attention = {name: shape for name, shape in dense.kernels(c).items() if name in _ATTENTION}
    return attention | {
        "router": (c.width, sizes[0]),
        "expert_gate": (sizes[0], c.width, sizes[1]),
        "expert_up": (sizes[0], c.width, sizes[1]),
        "expert_down": (*sizes, c.width),
    }


def _multiplied(c: Architecture) -> int:
    """Returns how many parameters of a block's matrices a token is multiplied with."""
    assert c.experts is not None
    kernels = _kernels(c)
    of_experts = sum(math.prod(kernels.pop(name)) for name in STACKS)
    return sum(map(math.prod, kernels.values())) + of_experts * c.experts.chosen // c.experts.count


def _check(c: Architecture) -> None:
    require(c, "experts", c.experts is not None, f"{c.family} has Experts")
    llama.QWEN3.check(dataclasses.replace(c, experts=None))


# Fields that would mix layers with and without experts, or give layers a window.
_ONLY: dict[str, tuple[Any, ...]] = {
    "decoder_sparse_step": (1, None),
    "mlp_only_layers": ([], None),
    "use_sliding_window": (False, None),
}


def _read(said: Fields) -> dict[str, Any]:
    """Reads what Qwen3 has, too, as Qwen3 does."""
    said.only(_ONLY)
    width = said.whole("hidden_size", 2**20)
    head_size = said.whole("head_dim", 2**12, width // said.whole("num_attention_heads", 2**12))
    same = Fields(said.path, {**said.raw, "model_type": "qwen3", "head_dim": head_size})
    count = said.whole("num_experts", 2**16, said.whole("num_local_experts", 2**16, 128))
    if said.whole("num_local_experts", 2**16, count) != count:
        raise said.refuse("num_local_experts", said.raw["num_local_experts"], f"{count}, as in num_experts")
    experts = Experts(
        count=count,
        chosen=said.whole("num_experts_per_tok", 2**16, 8),
        width=said.whole("moe_intermediate_size", 2**22, 768),
        normed=said.flag("norm_topk_prob", False),
    )
    return llama.QWEN3.read(same) | {"experts": experts}


def _write(c: Architecture) -> dict[str, Any]:
    assert c.experts is not None
    return llama.QWEN3.write(c) | {
        "num_experts": c.experts.count,
        "num_experts_per_tok": c.experts.chosen,
        "moe_intermediate_size": c.experts.width,
        "norm_topk_prob": c.experts.normed,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


def _spell(raw: dict[str, Any]) -> dict[str, Any]:
    """Gives the number of experts where ``transformers`` before and after version 5 looks for it."""
    said = Fields("config.json", raw)
    count = said.given("num_experts", said.given("num_local_experts", 128))
    return llama.QWEN3.spell(raw) | {"num_experts": count, "num_local_experts": count}


QWEN3_MOE = dataclasses.replace(
    llama.QWEN3,
    name="qwen3_moe",
    folder_class="Qwen3MoeForCausalLM",
    block=Block,
    modules={name: theirs for name, theirs in llama.QWEN3.modules.items() if name not in dense.LINEAR[4:]}
    | {
        "router": "mlp.gate",
        "expert_gate": "mlp.experts.{}.gate_proj",
        "expert_up": "mlp.experts.{}.up_proj",
        "expert_down": "mlp.experts.{}.down_proj",
    },
    # Experts are dealt to devices, and each is split as an MLP is.
    axes=((r"expert_(gate|up)/kernel$", "EDF"), (r"expert_down/kernel$", "EFD"), *dense.AXES),
    adapted=_ATTENTION,
    joined=(dense.QKV,),
    kernels=_kernels,
    multiplied=_multiplied,
    check=_check,
    read=_read,
    write=_write,
    spell=_spell,
)
