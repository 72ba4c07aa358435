"""llama.cpp on the CPU, by the low-level calls of llama-cpp-python: python llamacpp_rollout.py FOLDER"""

import ctypes
import os
from collections.abc import Iterator
from itertools import islice

from clock import Item

item = Item(__doc__)

import gguf  # noqa: E402
import llama_cpp as llama  # noqa: E402
import numpy as np  # noqa: E402
from safetensors.numpy import load_file  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402


def export(path: str) -> None:
    """The model as a GGUF file, of tokens that have no texts."""
    m = item.model
    assert m["dtype"] == "float32" and m["family"] == "qwen3", m
    writer = gguf.GGUFWriter(path, "qwen3")
    writer.add_context_length(item.prompt_tokens + item.new_tokens)
    writer.add_embedding_length(m["width"])
    writer.add_block_count(m["layers"])
    writer.add_feed_forward_length(m["mlp_width"])
    writer.add_head_count(m["heads"])
    writer.add_head_count_kv(m["kv_heads"])
    writer.add_key_length(m["head_size"])
    writer.add_value_length(m["head_size"])
    writer.add_rope_freq_base(m["rope_theta"])
    writer.add_layer_norm_rms_eps(m["rms_epsilon"])
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(m["vocab_size"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, m["layers"])
    for name, values in load_file(item.folder / "model.safetensors").items():
        writer.add_tensor(names.get_name(name, [".weight"]), values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Decoder:
    """Sequences with a cache each."""

    def __init__(self, path: str, sequences: int):
        self._quiet = llama.llama_log_callback(lambda *_: None)
        llama.llama_log_set(self._quiet, None)
        options = llama.llama_context_default_params()
        options.n_ctx = sequences * (item.prompt_tokens + item.new_tokens)
        options.n_batch = max(sequences, item.prompt_tokens)
        options.n_seq_max = sequences
        options.n_threads = options.n_threads_batch = len(os.sched_getaffinity(0))
        options.type_k = options.type_v = gguf.GGMLQuantizationType.F32
        # On a CPU its flash attention takes longer, and so does one cache for all sequences.
        options.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_DISABLED
        options.kv_unified = False
        self._model = llama.llama_model_load_from_file(path.encode(), llama.llama_model_default_params())
        self._context = llama.llama_init_from_model(self._model, options)
        self._memory = llama.llama_get_memory(self._context)

    def __call__(self, tokens, positions, sequences, wanted) -> np.ndarray:
        """Logits [n, vocabulary] after the ``wanted`` ones of the tokens, until the next call."""
        count = len(tokens)
        sequences = np.asarray(sequences, np.int32)
        columns = {
            "token": np.asarray(tokens, np.int32),
            "pos": np.asarray(positions, np.int32),
            "n_seq_id": np.ones(count, np.int32),
            "seq_id": sequences.ctypes.data + sequences.itemsize * np.arange(count),  # pointers
            "logits": np.asarray(wanted, np.int8),
        }
        batch = llama.llama_batch(n_tokens=count)
        for name, kind in llama.llama_batch._fields_:
            if name in columns:
                setattr(batch, name, ctypes.cast(columns[name].ctypes.data, kind))
        assert llama.llama_decode(self._context, batch) == 0
        shape = np.count_nonzero(wanted), item.model["vocab_size"]
        return np.ctypeslib.as_array(llama.llama_get_logits(self._context), shape)

    def copy(self, source: int, to: int) -> None:
        llama.llama_memory_seq_cp(self._memory, source, to, -1, -1)

    def forget(self, sequence: int) -> None:
        llama.llama_memory_seq_rm(self._memory, sequence, -1, -1)


def draw(logits: np.ndarray) -> np.ndarray:
    """From the softmax of each row."""
    sums = np.exp(logits - logits.max(-1, keepdims=True)).cumsum(-1, dtype=np.float64)
    return (sums < sums[:, -1:] * rng.random((len(sums), 1))).sum(-1)


def rollout(decoder: Decoder, rows: int, prompts: list[list[int]]) -> list[int]:
    """Lengths of K samples of each prompt, as many at once as there are rows.

    Samples are the first sequences at all times: what is not adjacent llama.cpp decodes apart. The sequence
    after all rows keeps a prompt for its samples that still wait for a row.
    """
    P, lengths, live = item.prompt_tokens, [], 0
    last, drawn = np.zeros((2, rows), int)  # of a row: its last token, and how many

    def starts() -> Iterator[int]:
        """The first tokens of all samples."""
        for prompt in prompts:
            decoder.forget(rows)
            logits = decoder(prompt, np.arange(P), np.full(P, rows), np.arange(P) == P - 1)
            yield from draw(logits.repeat(item.candidates, 0))

    waiting = starts()
    while True:
        ended = np.isin(last[:live], item.stop_ids) | (drawn[:live] == item.new_tokens)
        for row in np.flatnonzero(ended)[::-1].tolist():
            lengths.append(int(drawn[row]))
            live -= 1
            if row != live:
                decoder.copy(live, row)
                last[row], drawn[row] = last[live], drawn[live]
            decoder.forget(live)
        started = live
        for token in islice(waiting, rows - live):
            decoder.copy(rows, live)
            last[live], drawn[live] = token, 1
            live += 1
        if live > started:
            continue  # a first token may be a last one, too
        if not live:
            return lengths
        logits = decoder(last[:live], P - 1 + drawn[:live], np.arange(live), np.ones(live))
        last[:live] = draw(logits)
        drawn[:live] += 1


tokenizer = Tokenizer.from_file(str(item.folder / "tokenizer.json"))
rng = np.random.default_rng(0)
path = str(item.folder / "model.gguf")
export(path)
rows = min(item.micro * item.candidates, llama.llama_max_parallel_sequences() - 1)
decoder = Decoder(path, rows + 1)
for step in range(item.total):
    prompts = [tokenizer.encode(text).ids for text in item.batch(step)]
    with item.timed("rollout"):
        lengths = rollout(decoder, rows, prompts)
    item.count(lengths)

item.report("llamacpp")
