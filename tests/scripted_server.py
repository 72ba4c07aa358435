"""An HTTP server that speaks the part of SGLang's contract that we use, and breaks it as a script says.

What it answers, field by field, is what sglang 0.5.23 was seen to answer; ``test_sglang_live.py`` holds the
two together.
"""

import asyncio
import contextlib
import gzip
import json
import threading
from http import HTTPStatus
from urllib.parse import quote

from aiohttp import web

from atgrpo_jax.engines.sglang.processes import free_port

# Bodies that are no answer.
RAW = {
    "deep": b"[" * 200_000,
    "deep and whole": b"[" * 50_000 + b"]" * 50_000,
    "5,000 digits": b'{"weight_version": ' + b"1" * 5000 + b"}",
    "not a number": b'{"weight_version": NaN, "success": -Infinity}',
    "no UTF-8": b'{"weight_version": "\xff"}',
    "UTF-16": '{"success": true}'.encode("utf-16"),
    "one name twice": b'{"success": true, "success": true}',
    "text": b'"text"',
    "empty": b"",
}
BOMB = gzip.compress(b" " * (1 << 22))


class ScriptedServer:
    """``faults`` is a list of what to do instead of an answer to the next groups: one each. What is asked of
    the paths in ``lost`` is done, and the answer lost, once; the paths in ``spoilt`` answer with that fault,
    and redirects go to ``elsewhere``."""

    def __init__(self, model_path, vocab_size=64, context=256, lora=False, key=None, port=None):
        self.model_path, self.vocab_size, self.context = str(model_path), vocab_size, context
        self.lora, self.key = lora, key
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.faults: list[str] = []
        self.lost: list[str] = []
        self.spoilt: dict[str, str] = {}
        self.elsewhere = self.url
        self.sick = False  # its health is not answered
        self.asked: list[tuple[str, object]] = []  # (path, body)
        self.version = "default"
        self.pushed = ""
        self.adapters: dict[str, str] = {}
        self.drawing = 0
        self.most = 0

    def __enter__(self):
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._runner = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()
        return self

    def __exit__(self, *exc):
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def hang(self):
        """Connections are taken, and nothing is answered until ``go_on``."""
        self._going = threading.Event()
        self._loop.call_soon_threadsafe(self._going.wait)

    def go_on(self):
        self._going.set()
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0.05), self._loop).result()  # sees who has hung up

    def restart(self):
        """As a supervisor would: the weights and adapters are gone."""
        self.version, self.adapters = "default", {}

    def bodies(self, path):
        return [body for asked, body in self.asked if asked == path]

    async def _start(self):
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self.port).start()
        return runner

    async def _answer(self, request):
        body = await request.json() if request.can_read_body else None
        self.asked.append((request.path, body))
        if self.key and request.headers.get("Authorization") != f"Bearer {self.key}":
            return web.json_response({"error": "Unauthorized"}, status=401)
        if request.path in self.spoilt:
            return await self._spoil(self.spoilt[request.path], request)
        if request.path == "/generate":
            return await self._generate(request, body)
        if request.path == "/health_generate" and self.sick:
            return web.Response(status=503)
        about = getattr(self, "_" + request.path.strip("/"), None)
        answer = about(body) if about else web.Response(status=404)
        if request.path in self.lost:
            self.lost.remove(request.path)
            request.transport.close()
        return answer if isinstance(answer, web.Response) else web.json_response(answer)

    def _model_info(self, body):
        return {
            "model_path": self.pushed or self.model_path,
            "tokenizer_path": self.model_path,
            "weight_version": self.version,
        }

    def _server_info(self, body):
        return {
            "max_req_input_len": self.context,
            "enable_lora": self.lora,
            "skip_tokenizer_init": True,
            "enable_deterministic_inference": False,
        }

    def _readiness(self, body):  # a router's
        return {"status": "ready", "healthy_workers": 1, "total_workers": 1}

    def _update_weights_from_disk(self, body):
        self.version, self.pushed = body["weight_version"], body["model_path"]
        return {"success": True, "message": "Succeeded to update model weights."}

    def _load_lora_adapter(self, body):
        self.adapters[body["lora_name"]] = body["lora_path"]
        return {"success": True, "error_message": "", "loaded_adapters": self.adapters}

    def _unload_lora_adapter(self, body):
        if body["lora_name"] not in self.adapters:
            return web.json_response({"error": {"message": "LoRA with this name does not exist"}}, status=400)
        del self.adapters[body["lora_name"]]
        return {"success": True, "error_message": "", "loaded_adapters": self.adapters}

    def _abort_request(self, body):
        return None

    async def _generate(self, request, body):
        if not isinstance(body["input_ids"][0], list):  # the prompt alone
            return web.json_response(self._one(body["input_ids"], body["sampling_params"], body["rid"], 0))
        lora = body.get("lora_path")
        if lora is not None and lora not in self.adapters:
            return web.json_response({"error": {"message": f"LoRA adapter '{lora}'"}}, status=400)
        self.drawing += 1
        self.most = max(self.most, self.drawing)
        try:
            return await self._group(request, body)
        finally:
            self.drawing -= 1

    async def _group(self, request, body):
        fault = self.faults.pop(0) if self.faults else ""
        await asyncio.sleep(0.01)
        count, params = len(body["input_ids"]), body["sampling_params"]
        each = params if isinstance(params, list) else [params] * count
        answers = [
            self._one(ids, params, f"{body['rid']}_{i}", params["max_new_tokens"])
            for i, (ids, params) in enumerate(zip(body["input_ids"], each, strict=True))
        ]
        first = answers[0]["meta_info"]
        if fault == "echo in a sample":
            first["output_token_logprobs"][-1][1] = request.headers["Authorization"]
        elif fault in (*RAW, "endless", "gzip", "307", "echo", "echo in JSON"):
            return await self._spoil(fault, request)
        elif fault.isdigit():
            return web.Response(status=int(fault), text=HTTPStatus(int(fault)).phrase)
        elif fault == "closed":
            request.transport.close()
        elif fault == "cut":
            response = web.StreamResponse(headers={"Content-Type": "application/json"})
            response.content_length = 10_000
            await response.prepare(request)
            await response.write(json.dumps(answers).encode()[:80])
            request.transport.close()
            return response
        elif fault == "slow":
            await asyncio.sleep(60)
        elif fault == "no json":
            return web.Response(text="<html>")
        elif fault == "one missing":
            answers.pop()
        elif fault == "no logprobs":
            del first["output_token_logprobs"]
        elif fault == "a logprob less":
            first["output_token_logprobs"].pop()
        elif fault == "too many":
            first["output_token_logprobs"] = first["output_token_logprobs"] * 2
            first["completion_tokens"] *= 2
        elif fault == "no count":
            first["completion_tokens"] = None
        elif fault == "wrong id":
            first["output_token_logprobs"][-1][1] = self.vocab_size
        elif fault == "true for an id":
            first["output_token_logprobs"][-1][1] = True
        elif fault == "id 3.0":
            first["output_token_logprobs"][-1][1] = 3.0
        elif fault == "logprob of 400 digits":
            first["output_token_logprobs"][-1][0] = -(10**400)
        elif fault == "nan":
            first["output_token_logprobs"][-1][0] = float("nan")
        elif fault == "stopped early":
            first["output_token_logprobs"].pop()
            first["completion_tokens"] -= 1
            first["finish_reason"] = {"type": "stop", "matched": 5}
        elif fault == "another end":
            first["finish_reason"] = {"type": "stop", "matched": first["output_token_logprobs"][-1][1]}
        elif fault == "aborted":
            first["finish_reason"] = {"type": "abort", "message": "Aborted"}
        elif fault == "another version":
            first["weight_version"] = "mine"
        elif fault == "two versions":
            first["weight_versions"].insert(0, {"version": "older", "start": 0, "end": 1})
        elif fault == "repeated":  # as sglang-jax does beyond 50 tokens
            first["output_token_logprobs"] = [[-9.0, 1, None]] * 3 + first["output_token_logprobs"]
        elif fault == "restarted":
            self.restart()
            return await self._group(request, body)
        else:
            assert not fault, fault
        return web.json_response(answers)

    async def _spoil(self, fault, request):
        if fault == "307":
            return web.Response(status=307, headers={"Location": self.elsewhere + request.path})
        if fault == "echo":
            key = request.headers["Authorization"]
            return web.Response(status=400, text=f"{key}\n{quote(key)}\n{json.dumps(key)}\x1b[2J")
        if fault == "echo in JSON":
            return web.json_response({"error": {"message": ["x" * 90, dict(request.headers)]}}, status=400)
        if fault == "gzip":  # more when it is unpacked
            return web.Response(body=BOMB, headers={"Content-Encoding": "gzip"})
        if fault != "endless":
            return web.Response(body=RAW[fault])
        response = web.StreamResponse()
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            while True:
                await response.write(b" " * (1 << 18))
        return response

    def _one(self, ids, params, rid, count):
        """Tokens count up from the prompt's sum."""
        start = sum(ids) + len(rid)
        entries = [[-0.5 - 0.1 * i, (start + i) % (self.vocab_size - 10) + 10, None] for i in range(count)]
        return {
            "output_ids": [entry[1] for entry in entries],
            "meta_info": {
                "id": rid,
                "finish_reason": {"type": "length", "length": count},
                "prompt_tokens": len(ids),
                "weight_version": self.version,
                "num_retractions": 0,
                "input_token_logprobs": [],
                "output_token_logprobs": entries,
                "output_token_logprobs_length": count,
                "reasoning_tokens": 0,
                "completion_tokens": count,
                "cached_tokens": max(len(ids) - 1, 0),
                "weight_versions": [{"version": self.version, "start": 0, "end": count}],
                "cached_tokens_details": None,
                "dp_rank": None,
                "e2e_latency": 0.01,
            },
        }
