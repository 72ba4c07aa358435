"""How queries meet keys: grouped-query attention over a mask, and over a prompt shared by branches."""

import jax
import jax.numpy as jnp

_HIDDEN = -1e30  # finite, so that a row which sees nothing stays finite


def _grouped(q: jax.Array, kv_heads: int) -> jax.Array:
    """[..., N, H] -> [..., M, N / M, H]: the query heads of each key head."""
    return q.reshape(*q.shape[:-2], kv_heads, q.shape[-2] // kv_heads, q.shape[-1])


def masked_attention(
    q_BTNH: jax.Array, k_BSMH: jax.Array, v_BSMH: jax.Array, mask_BTS: jax.Array
) -> jax.Array:
    """Softmax attention where ``mask_BTS`` is true. Scores and softmax in float32. [B, T, N, H]."""
    (B, T, N, H), (S, M) = q_BTNH.shape, k_BSMH.shape[1:3]
    # Heads first, and the query heads of a key head side by side: plain batched matrix products.
    q_BMXH = _grouped(q_BTNH * H**-0.5, M).transpose(0, 2, 3, 1, 4).reshape(B, M, -1, H)
    k_BMSH, v_BMSH = k_BSMH.transpose(0, 2, 1, 3), v_BSMH.transpose(0, 2, 1, 3)
    scores = jnp.einsum("bmxh,bmsh->bmxs", q_BMXH, k_BMSH, preferred_element_type=jnp.float32)
    scores = jnp.where(mask_BTS[:, None, None], scores.reshape(B, M, -1, T, S), _HIDDEN)
    probs = jax.nn.softmax(scores, axis=-1).reshape(B, M, -1, S)
    out = jnp.einsum("bmxs,bmsh->bmxh", probs.astype(v_BMSH.dtype), v_BMSH)
    return out.reshape(B, M, -1, T, H).transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)


def branch_attention(
    q_GKNH: jax.Array,
    prompt_GPMH: tuple[jax.Array, jax.Array],
    branch_GKCMH: tuple[jax.Array, jax.Array],
    prompt_mask_GP: jax.Array,
    branch_mask_GKC: jax.Array,
) -> jax.Array:
    """One query a branch, over the prompt of its group (stored once) and its own tokens. [G, K, N, H].

    Each of the two caches is a pair (keys, values).
    """
    (prompt_k, prompt_v), (branch_k, branch_v) = prompt_GPMH, branch_GKCMH
    q = _grouped(q_GKNH, prompt_k.shape[2]) * q_GKNH.shape[-1] ** -0.5
    wide = {"preferred_element_type": jnp.float32}
    to_prompt = jnp.einsum("gkmrh,gpmh->gkmrp", q, prompt_k, **wide)
    to_branch = jnp.einsum("gkmrh,gkcmh->gkmrc", q, branch_k, **wide)
    to_prompt = jnp.where(prompt_mask_GP[:, None, None, None], to_prompt, _HIDDEN)
    to_branch = jnp.where(branch_mask_GKC[:, :, None, None], to_branch, _HIDDEN)
    probs = jax.nn.softmax(jnp.concatenate([to_prompt, to_branch], -1), axis=-1)
    probs = probs.astype(prompt_v.dtype)
    split = prompt_k.shape[1]
    out = jnp.einsum("gkmrp,gpmh->gkmrh", probs[..., :split], prompt_v)
    out += jnp.einsum("gkmrc,gkcmh->gkmrh", probs[..., split:], branch_v)
    return out.reshape(q_GKNH.shape)
