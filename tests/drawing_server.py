"""A server that draws from the weights that it is given: python drawing_server.py PORT MODEL_FOLDER.

It speaks as ``ScriptedServer`` does, and draws as the in-process engine does. Its samples depend on the
seeds that it is sent, so two runs that draw from it can be compared. It ends when its input does.
"""

import sys

import jax
from aiohttp import web
from scripted_server import ScriptedServer

from atgrpo_jax.common.types import Address, GroupKey, Sampling
from atgrpo_jax.engines.local.engine import LocalEngine
from atgrpo_jax.engines.local.local import LocalEngineConfig
from atgrpo_jax.engines.protocol import Request
from atgrpo_jax.models.families.table import transformer
from atgrpo_jax.models.hf import hf
from atgrpo_jax.models.transformer import PolicyWeights, init_params

KEY = GroupKey(0, "", 0, 0, 0, "")


class DrawingServer(ScriptedServer):
    def __init__(self, model_path, port):
        architecture = hf.architecture(model_path)
        super().__init__(model_path, architecture.vocab_size, port=port)
        self.info["enable_deterministic_inference"] = True
        model = transformer(architecture, architecture.vocab_size)
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        self.shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here),
            jax.eval_shape(lambda: init_params(model, jax.random.key(0))),
        )
        stop_ids = tuple(hf.end_ids(model_path))
        self.engine = LocalEngine(model, stop_ids, LocalEngineConfig(slots=32, max_prompt=192))

    def _update_weights(self, body):
        weights = PolicyWeights(hf.load(body["model_path"], self.shapes))
        self.engine.push_weights("", weights, 0)
        return super()._update_weights(body)

    async def group(self, request, body):
        """Each sample has its own seed, and a name that says nothing else."""
        each = body["sampling_params"]
        sampling = Sampling(each[0]["temperature"], each[0]["max_new_tokens"])
        addresses = tuple(Address(own["sampling_seed"], KEY, 0) for own in each)
        drawn = await self.engine.sample(Request("", tuple(body["input_ids"][0]), addresses, sampling))
        return web.json_response([self.as_answer(body, *pair) for pair in enumerate(drawn)])

    def as_answer(self, body, k, sample):
        count = len(sample.tokens)
        answer = self.answer(body["input_ids"][k], f"{body['rid']}_{k}", count)
        stopped = {"type": "stop", "matched": sample.tokens[-1]}
        pairs = zip(sample.logprobs, sample.tokens, strict=True)
        answer["output_ids"] = list(sample.tokens)
        answer["meta_info"] |= {
            "finish_reason": stopped if sample.finish == "stop" else {"type": "length", "length": count},
            "output_token_logprobs": [[logprob, token, None] for logprob, token in pairs],
        }
        return answer


if __name__ == "__main__":
    with DrawingServer(sys.argv[2], int(sys.argv[1])):
        print("ready", flush=True)
        sys.stdin.read()
