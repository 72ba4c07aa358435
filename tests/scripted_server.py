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
BOMB = gzip.compress(b" " * (1 << 22))  # more when it is unpacked


def instead(raw, **headers):
    """Makes a fault: bytes that are no answer."""

    async def fault(server, request, answers):
        return web.Response(body=raw, headers=headers)

    return fault


def status(code):
    """Makes a fault: a status, and its name for an answer."""

    async def fault(server, request, answers):
        return web.Response(status=code, text=HTTPStatus(code).phrase)

    return fault


def of_first(change):
    """Makes a fault: what the first answer says of itself (``meta_info``) is changed."""

    async def fault(server, request, answers):
        change(answers[0]["meta_info"])
        return web.json_response(answers)

    return fault


def last_entry(place, value):
    """Makes a fault: another logprob (place 0) or id (place 1) of the first answer's last token."""

    def change(meta):
        meta["output_token_logprobs"][-1][place] = value

    return of_first(change)


def twice(meta):
    meta["output_token_logprobs"] = meta["output_token_logprobs"] * 2
    meta["completion_tokens"] *= 2


def stopped_early(meta):
    meta["output_token_logprobs"].pop()
    meta["completion_tokens"] -= 1
    meta["finish_reason"] = {"type": "stop", "matched": 5}


def another_end(meta):
    meta["finish_reason"] = {"type": "stop", "matched": meta["output_token_logprobs"][-1][1]}


def repeated(meta):
    """Puts entries before the others, as sglang-jax does beyond 50 tokens."""
    meta["output_token_logprobs"] = [[-9.0, 1, None]] * 3 + meta["output_token_logprobs"]


async def id_outside(server, request, answers):
    answers[0]["meta_info"]["output_token_logprobs"][-1][1] = server.vocab_size
    return web.json_response(answers)


async def one_missing(server, request, answers):
    return web.json_response(answers[:-1])


async def closed(server, request, answers):
    request.transport.close()
    return web.json_response(answers)


async def cut(server, request, answers):
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    response.content_length = 10_000
    await response.prepare(request)
    await response.write(json.dumps(answers).encode()[:80])
    request.transport.close()
    return response


async def slow(server, request, answers):
    await asyncio.sleep(60)
    return web.json_response(answers)


async def endless(server, request, answers):
    response = web.StreamResponse()
    await response.prepare(request)
    with contextlib.suppress(ConnectionError):
        while True:
            await response.write(b" " * (1 << 18))
    return response


async def restarted(server, request, answers):
    server.restart()
    return await server.group(request, await request.json())


async def redirected(server, request, answers):
    return web.Response(status=307, headers={"Location": server.elsewhere + request.path})


async def echo(server, request, answers):
    key = request.headers["Authorization"]
    return web.Response(status=400, text=f"{key}\n{quote(key)}\n{json.dumps(key)}\x1b[2J")


async def echo_in_json(server, request, answers):
    return web.json_response({"error": {"message": ["x" * 90, dict(request.headers)]}}, status=400)


async def echo_in_a_sample(server, request, answers):
    answers[0]["meta_info"]["output_token_logprobs"][-1][1] = request.headers["Authorization"]
    return web.json_response(answers)


# From a fault's name to what is done in place of an answer: (server, request, right answers) -> response.
# Those that need no right answers can also spoil other paths than /generate.
FAULTS = {
    **{name: instead(raw) for name, raw in RAW.items()},
    "no json": instead(b"<html>", **{"Content-Type": "text/plain; charset=utf-8"}),
    "gzip": instead(BOMB, **{"Content-Encoding": "gzip"}),
    "endless": endless,
    **{str(code): status(code) for code in (400, 408, 429, 500, 503)},
    "307": redirected,
    "closed": closed,
    "cut": cut,
    "slow": slow,
    "restarted": restarted,
    "echo": echo,
    "echo in JSON": echo_in_json,
    "echo in a sample": echo_in_a_sample,
    "one missing": one_missing,
    "wrong id": id_outside,
    "true for an id": last_entry(1, True),
    "id 3.0": last_entry(1, 3.0),
    "logprob of 400 digits": last_entry(0, -(10**400)),
    "nan": last_entry(0, float("nan")),
    "no logprobs": of_first(lambda meta: meta.pop("output_token_logprobs")),
    "a logprob less": of_first(lambda meta: meta["output_token_logprobs"].pop()),
    "too many": of_first(twice),
    "no count": of_first(lambda meta: meta.update(completion_tokens=None)),
    "stopped early": of_first(stopped_early),
    "another end": of_first(another_end),
    "repeated": of_first(repeated),
    "aborted": of_first(lambda meta: meta.update(finish_reason={"type": "abort", "message": "Aborted"})),
    "another version": of_first(lambda meta: meta.update(weight_version="mine")),
    "two versions": of_first(
        lambda meta: meta["weight_versions"].insert(0, {"version": "older", "start": 0, "end": 1})
    ),
}


class ScriptedServer:
    """Answers at the paths in ``paths``, with what their function makes of a request's body.

    ``faults`` names what to do in place of an answer to the next groups (see ``FAULTS``): one each. What is
    asked of the paths in ``lost`` is done, and the answer lost, once. ``spoilt`` says which paths answer with
    which fault. Redirects go to ``elsewhere``.
    """

    def __init__(self, model_path, vocab_size=64, context=256, lora=False, key=None, port=None):
        self.model_path = str(model_path)
        self.vocab_size = vocab_size
        self.key = key
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
        self.info = {
            "max_req_input_len": context,
            "enable_lora": lora,
            "skip_tokenizer_init": True,
            "enable_deterministic_inference": False,
        }
        self.paths = {
            "/model_info": self._model_info,
            "/server_info": lambda body: self.info,
            "/readiness": lambda body: {
                "status": "ready",
                "healthy_workers": 1,
                "total_workers": 1,
            },  # a router's
            "/update_weights_from_disk": self._update_weights,
            "/load_lora_adapter": self._load_adapter,
            "/unload_lora_adapter": self._unload_adapter,
            "/abort_request": lambda body: None,
        }

    def __enter__(self):
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._runner = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()
        return self

    def __exit__(self, *exc):
        """Ends the server, if it still runs. Its port may be somebody else's then."""
        if self._loop.is_closed():
            return
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
        app.router.add_route("*", "/{path:.*}", self._respond)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self.port).start()
        return runner

    async def _respond(self, request):
        body = await request.json() if request.can_read_body else None
        self.asked.append((request.path, body))
        if self.key and request.headers.get("Authorization") != f"Bearer {self.key}":
            return web.json_response({"error": "Unauthorized"}, status=401)
        if request.path in self.spoilt:
            return await FAULTS[self.spoilt[request.path]](self, request, None)
        if request.path == "/generate":
            return await self.generate(request, body)
        if request.path == "/health_generate" and self.sick:
            return web.Response(status=503)
        make = self.paths.get(request.path)
        answer = make(body) if make else web.Response(status=404)
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

    def _update_weights(self, body):
        self.version, self.pushed = body["weight_version"], body["model_path"]
        return {"success": True, "message": "Succeeded to update model weights."}

    def _load_adapter(self, body):
        self.adapters[body["lora_name"]] = body["lora_path"]
        return {"success": True, "error_message": "", "loaded_adapters": self.adapters}

    def _unload_adapter(self, body):
        if body["lora_name"] not in self.adapters:
            return web.json_response({"error": {"message": "LoRA with this name does not exist"}}, status=400)
        del self.adapters[body["lora_name"]]
        return {"success": True, "error_message": "", "loaded_adapters": self.adapters}

    async def generate(self, request, body):
        if not isinstance(body["input_ids"][0], list):  # the prompt alone
            return web.json_response(self.answer(body["input_ids"], body["rid"], 0))
        lora = body.get("lora_path")
        if lora is not None and lora not in self.adapters:
            return web.json_response({"error": {"message": f"LoRA adapter '{lora}'"}}, status=400)
        self.drawing += 1
        self.most = max(self.most, self.drawing)
        try:
            return await self.group(request, body)
        finally:
            self.drawing -= 1

    async def group(self, request, body):
        fault = self.faults.pop(0) if self.faults else ""
        await asyncio.sleep(0.01)
        prompts, params = body["input_ids"], body["sampling_params"]
        each = params if isinstance(params, list) else [params] * len(prompts)
        answers = [
            self.answer(ids, f"{body['rid']}_{i}", own["max_new_tokens"])
            for i, (ids, own) in enumerate(zip(prompts, each, strict=True))
        ]
        if fault:
            return await FAULTS[fault](self, request, answers)
        return web.json_response(answers)

    def answer(self, ids, rid, count):
        """A right answer to one prompt: its tokens count up from the prompt's sum."""
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
