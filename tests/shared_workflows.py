"""The tasks of docs/workflows.md, and answers as tasks demonstrate them."""

import random
import re
import sys
import types
from pathlib import Path

from fakes import CharTokenizer

from atgrpo_jax.common.types import Sample

PAGE = (Path(__file__).parents[1] / "docs" / "workflows.md").read_text()


def blocks(tag):
    found = re.findall(r"^```(\w*)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    return [text for name, text in found if name == tag]


def _module():
    made = sys.modules["talk"] = types.ModuleType("talk")
    (code,) = blocks("python")
    exec(code, made.__dict__)
    return made


talk = _module()


def demonstrated(task):
    """What an ``AnsweringEngine`` says: what ``task`` demonstrates at the start of the episode.

    A sample depends on its address alone.
    """

    def answer(engine, request):
        samples = []
        for address in request.addresses:
            key = address.group
            state = task.initial(task.instance(key.split, key.instance))
            text = task.demonstration(state, key.speaker, random.Random(str(address)))
            tokens = CharTokenizer().answer_ids(text)
            version = engine.versions.get(request.policy, 0)
            samples.append(Sample(tokens, (-1.0,) * len(tokens), "stop", version))
        return samples

    return answer
