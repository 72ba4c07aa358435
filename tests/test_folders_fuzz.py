"""Folders with something changed in them: read as they are, or refused in a line."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from fuzz import fuzz, places
from hypothesis import given
from hypothesis import strategies as st
from reference import VARIANTS, make, make_tokenizer
from safetensors.numpy import load_file

from atgrpo_jax.common.errors import RunError
from atgrpo_jax.models.hf import hf
from atgrpo_jax.models.hf.tensors import INDEX, SINGLE, Tensors
from atgrpo_jax.tokens.tokens import FolderTokenizer

LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4),
    st.sampled_from([0, 1, -1, 2**31, 10**30, 1e308, "\ud800", "<|im_end|>", "BPE", "a", "../a"]),
)  # fmt: skip
ODD = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
# Fields of config.json that the small model leaves out, and that are read.
FIELDS = ("rope_scaling", "rope_theta", "use_sliding_window", "max_window_layers", "torch_dtype")


def change(data, value):
    """Puts something odd into one place of it, or takes the place away."""
    container, key = data.draw(st.sampled_from(list(places(value))))
    what = data.draw(st.sampled_from(("odd", "gone", "twice")))
    if what == "odd":
        container[key] = data.draw(ODD)
    elif isinstance(container, dict):
        taken = container.pop(key)
        if what == "twice":
            container[data.draw(st.text(max_size=4))] = taken
    else:
        container[key : key + 1] = [container[key]] * (2 if what == "twice" else 0)


def one_line(error):
    assert "\n" not in str(error) and len(str(error)) < 2000


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    root = tmp_path_factory.mktemp("whole")
    make(root, *VARIANTS["llama"])
    make_tokenizer(root)
    return root


@pytest.fixture
def fresh(whole, tmp_path_factory):
    """Makes a copy for each example."""
    root = tmp_path_factory.mktemp("fresh") / "folder"

    def make_copy():
        shutil.rmtree(root, ignore_errors=True)
        return Path(shutil.copytree(whole, root))

    return make_copy


def read_all(root, shapes):
    """Every tensor that has the shape it ought to have, or a RunError."""
    tensors = Tensors(root)
    everything = slice(None)
    return [
        tensors.slices(name, shape).read((everything,) * len(shape), np.float32)
        for name, shape in shapes.items()
        if name in tensors
    ]


@fuzz(60)
@given(at=st.integers(0, 3000), raw=st.binary(min_size=1, max_size=12), cut=st.booleans())
def test_changed_bytes_of_weights(fresh, at, raw, cut):
    folder = fresh()
    good = (folder / SINGLE).read_bytes()
    shapes = {name: values.shape for name, values in load_file(folder / SINGLE).items()}
    path = folder / SINGLE
    path.write_bytes(good[:at] if cut else good[:at] + raw + good[at + len(raw) :])
    try:
        found = read_all(folder, shapes)
    except RunError as error:
        one_line(error)
        return
    assert all(np.isfinite(values).all() for values in found)


@fuzz(150)
@given(data=st.data())
def test_a_changed_description(fresh, data):
    folder = fresh()
    raw = json.loads((folder / "config.json").read_text())
    raw |= dict.fromkeys(FIELDS)
    change(data, raw)
    (folder / "config.json").write_text(json.dumps(raw))
    for read in (hf.architecture, hf.end_ids):
        try:
            read(str(folder))
        except RunError as error:
            one_line(error)


@fuzz(60)
@given(data=st.data())
def test_a_changed_index(fresh, data):
    folder = fresh()
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(("a", "b"), "one.safetensors")}
    (folder / SINGLE).rename(folder / "one.safetensors")
    change(data, index)
    (folder / INDEX).write_text(json.dumps(index))
    try:
        assert len(list(Tensors(folder))) > 5  # what files hold, they say themselves
    except RunError as error:
        one_line(error)


@fuzz(60)
@given(data=st.data(), text=st.text(max_size=12))
def test_a_changed_tokenizer(fresh, data, text):
    """If it is read, a text's ids are the library's own, and it comes back as the library has it."""
    folder = fresh()
    name = data.draw(st.sampled_from(("tokenizer.json", "tokenizer_config.json", "generation_config.json")))
    path = folder / name
    raw = json.loads(path.read_text()) if path.exists() else {"eos_token_id": [1, 2]}
    change(data, raw)
    path.write_text(json.dumps(raw))
    try:
        tokenizer = FolderTokenizer(str(folder))
        tokenizer.prompt_ids([{"role": "user", "content": text}])
        *ids, _ = tokenizer.answer_ids(text)
        tokenizer.decode(ids)
    except (RunError, ValueError) as error:
        one_line(error)
        return
    about = json.loads((folder / "tokenizer.json").read_text()) | {"truncation": None, "padding": None}
    library = tokenizers.Tokenizer.from_str(json.dumps(about))
    added = [token.content for token in library.get_added_tokens_decoder().values()]
    if not any(word in text for word in added):
        assert ids == library.encode(text, add_special_tokens=False).ids
