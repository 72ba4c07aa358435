"""google-tunix's GRPOLearner with its own JAX rollout, on one mesh: python tunix_grpo.py FOLDER"""

import time

from clock import Item, reward

item = Item(__doc__)

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
from flax import nnx  # noqa: E402
from transformers import AutoTokenizer  # noqa: E402
from tunix.rl import rl_cluster  # noqa: E402
from tunix.rl.grpo import grpo_learner  # noqa: E402
from tunix.rl.rollout import base_rollout  # noqa: E402
from tunix_model import load  # noqa: E402

m = item.model
mesh, actor = load(item)
role = rl_cluster.Role
cluster = rl_cluster.RLCluster(
    actor=actor,
    reference=None,
    tokenizer=AutoTokenizer.from_pretrained(item.folder),
    cluster_config=rl_cluster.ClusterConfig(
        role_to_mesh=dict.fromkeys((role.ACTOR, role.REFERENCE, role.ROLLOUT), mesh),
        rollout_engine="vanilla",
        offload_to_cpu=False,
        training_config=rl_cluster.RLTrainingConfig(
            actor_optimizer=optax.chain(
                optax.clip_by_global_norm(1.0), optax.adamw(1e-4, b1=0.9, b2=0.999, weight_decay=0.01)
            ),
            eval_every_n_steps=10**9,
            max_steps=item.total,
            mini_batch_size=item.prompts,
            train_micro_batch_size=item.micro,
            rollout_micro_batch_size=item.prompts,
            compute_logps_micro_batch_size=item.prompts,
        ),
        rollout_config=base_rollout.RolloutConfig(
            max_tokens_to_generate=item.new_tokens,
            max_prompt_length=item.prompt_tokens,
            kv_cache_size=item.prompt_tokens + item.new_tokens,
            temperature=1.0,
            top_p=1.0,
            top_k=None,
            eos_tokens=[m["vocab_size"] + 1],  # no token has it: nothing stops early
        ),
    ),
)
learner = grpo_learner.GRPOLearner(
    rl_cluster=cluster,
    reward_fns=lambda prompts, completions, **_: list(map(reward, completions)),
    algo_config=grpo_learner.GRPOConfig(
        num_generations=item.candidates, num_iterations=1, beta=0.0, epsilon=0.2
    ),
)
generate, update_actor = cluster.generate, cluster.update_actor
began, parts = time.perf_counter(), []


def timed_generate(*args, **options):
    with item.timed("rollout"):
        out = generate(*args, **options)
    assert {len(tokens) for tokens in out.tokens} == {item.new_tokens}
    assert out.left_padded_prompt_tokens.shape == (item.rows, item.prompt_tokens)
    return out


def timed_update(*args, **options):
    global began
    started = time.perf_counter()
    update_actor(*args, **options)
    jax.block_until_ready(nnx.state(cluster.actor_trainer.model, nnx.Param))
    now = time.perf_counter()
    parts.append(now - started)
    if len(parts) < item.prompts // item.micro:
        return
    item.seconds["update"].append(sum(parts))
    parts.clear()
    item.seconds["step"].append(now - began)
    began = now


cluster.generate, cluster.update_actor = timed_generate, timed_update
before = jax.tree.map(jnp.copy, nnx.state(actor, nnx.Param))
with mesh:
    learner.train({"prompts": np.array(item.batch(step))} for step in range(item.total))
after = nnx.state(cluster.actor_trainer.model, nnx.Param)
assert any(map(jnp.any, jax.tree.leaves(jax.tree.map(jnp.not_equal, before, after)))), "nothing was trained"

item.report("tunix")
