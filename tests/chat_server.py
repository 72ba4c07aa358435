"""An HTTP server that speaks what partners need of the OpenAI API, and breaks it as a script says."""

import json

from aiohttp import web
from scripted_server import ScriptedServer

MODEL = "house-7b"


def completion(text, finish="stop", model=MODEL, prompt=11, answer=3):
    """An answer of /chat/completions, as sglang 0.5 and OpenAI give it, field by field."""
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 1700000000,
        "model": model,
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": text,
                    "reasoning_content": None,
                    "tool_calls": None,
                },
                "logprobs": None,
                "finish_reason": finish,
                "matched_stop": None,
            }
        ],
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": answer,
            "total_tokens": prompt + answer,
            "prompt_tokens_details": None,
        },
    }


def without(name, of=lambda answer: answer):
    """A right answer in which a field is missing."""
    answer = completion("text")
    del of(answer)[name]
    return answer


def refusal(status, message, code=None, **headers):
    """Makes an error in OpenAI's form."""
    body = json.dumps({"error": {"message": message, "type": "t", "param": None, "code": code}})
    return lambda: web.Response(status=status, text=body, headers=headers)


class ChatServer(ScriptedServer):
    """Answers with ``says(messages)``: a text, or a whole answer.

    ``script`` is what to do in place of an answer to the next prompts: a function that makes a response, or
    an answer. ``asked`` holds all requests.
    """

    def __init__(self, says=lambda messages: "12", key=None, port=None, models=(MODEL,)):
        super().__init__("", key=key, port=port)
        self.url += "/v1"
        self.says = says
        self.models = models
        self.script = []

    @property
    def prompts(self):
        return [body["messages"] for body in self.bodies("/v1/chat/completions")]

    async def _respond(self, request):
        body = await request.json() if request.can_read_body else None
        self.asked.append((request.path, body))
        self.sent = dict(request.headers)
        if self.key and request.headers.get("Authorization") != f"Bearer {self.key}":
            return refusal(401, f"no such key: {request.headers.get('Authorization')}")()
        if request.path == "/v1/models":
            return web.json_response({"object": "list", "data": [{"id": name} for name in self.models]})
        if request.path != "/v1/chat/completions":
            return web.Response(status=404, text="404 page not found")
        self.drawing += 1
        self.most = max(self.most, self.drawing)
        try:
            answer = self.script.pop(0) if self.script else self.says(body["messages"])
            while callable(answer):
                answer = answer()
            if hasattr(answer, "__await__"):
                answer = await answer
        finally:
            self.drawing -= 1
        if isinstance(answer, str):
            answer = completion(answer)
        return answer if isinstance(answer, web.StreamResponse) else web.json_response(answer)
