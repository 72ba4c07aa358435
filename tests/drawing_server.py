"""A server that draws from the weights that it is given: python drawing_server.py PORT MODEL_FOLDER.

It speaks as ``ScriptedServer`` does. Its samples depend on the seeds that it is sent, so runs that draw from
it can be compared. It ends when its input does.
"""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
from aiohttp import web
from scripted_server import ScriptedServer

from atgrpo_jax.models.attention import masked_attention
from atgrpo_jax.models.families.table import transformer
from atgrpo_jax.models.hf import hf
from atgrpo_jax.models.transformer import apply, init_params, logits

LENGTH = 192  # tokens of a prompt and its answer


@functools.partial(jax.jit, static_argnums=0)
def next_scores(model, params, tokens_BT, length):
    """The scores of all tokens after the first ``length`` of each row."""
    mask = jnp.tril(jnp.ones((1, LENGTH, LENGTH), bool))
    positions = jnp.broadcast_to(jnp.arange(LENGTH), tokens_BT.shape)
    hidden, _ = apply(
        model, params, None, tokens_BT, positions, lambda q, k, v, *_: (masked_attention(q, k, v, mask), None)
    )
    return logits(params, hidden[:, length - 1])


class DrawingServer(ScriptedServer):
    def __init__(self, model_path, port):
        architecture = hf.architecture(model_path)
        super().__init__(model_path, architecture.vocab_size, port=port)
        self.info["enable_deterministic_inference"] = True
        self.model = transformer(architecture, architecture.vocab_size)
        self.stop_ids = hf.end_ids(model_path)
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        shapes = jax.eval_shape(lambda: init_params(self.model, jax.random.key(0)))
        self.shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), shapes)

    def _update_weights(self, body):
        self.params = hf.load(body["model_path"], self.shapes)
        return super()._update_weights(body)

    async def group(self, request, body):
        """All samples have one prompt: their first tokens come from one row."""
        prompt, *_ = body["input_ids"]
        temperature, most = (body["sampling_params"][0][name] for name in ("temperature", "max_new_tokens"))
        rngs = [np.random.default_rng(own["sampling_seed"]) for own in body["sampling_params"]]
        drawn = [[] for _ in rngs]
        tokens = np.zeros((len(rngs) if most > 1 else 1, LENGTH), np.int32)
        tokens[:, : len(prompt)] = prompt
        for length in range(len(prompt), len(prompt) + most):
            scores = next_scores(self.model, self.params, tokens, length) / temperature
            logprobs = np.asarray(jax.nn.log_softmax(scores))
            for k, rng in enumerate(rngs):
                row = k % len(tokens)
                token = int(np.argmax(logprobs[row] + rng.gumbel(size=self.vocab_size)))
                tokens[row, length] = token
                if not drawn[k] or drawn[k][-1][1] not in self.stop_ids:
                    drawn[k].append([float(logprobs[row, token]), token, None])
        return web.json_response([self.as_answer(body, k, entries, most) for k, entries in enumerate(drawn)])

    def as_answer(self, body, k, entries, most):
        count = len(entries)
        answer = self.answer(body["input_ids"][k], f"{body['rid']}_{k}", count)
        last = entries[-1][1]
        stopped = {"type": "stop", "matched": last}
        ended = stopped if last in self.stop_ids else {"type": "length", "length": most}
        answer["output_ids"] = [entry[1] for entry in entries]
        answer["meta_info"] |= {"finish_reason": ended, "output_token_logprobs": entries}
        return answer


if __name__ == "__main__":
    with DrawingServer(sys.argv[2], int(sys.argv[1])):
        print("ready", flush=True)
        sys.stdin.read()
