"""vLLM, on a CPU its own build for that: python vllm_rollout.py FOLDER"""

import os

from clock import Item

item = Item(__doc__)
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")

from vllm import LLM, SamplingParams  # noqa: E402


def main() -> None:
    llm = LLM(
        model=str(item.folder),
        dtype=item.model["dtype"],
        max_model_len=item.prompt_tokens + item.new_tokens + 1,
        max_num_seqs=item.micro * item.candidates,
        seed=0,
        disable_log_stats=True,
    )
    settings = SamplingParams(
        n=item.candidates,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        max_tokens=item.new_tokens,
        min_tokens=0 if item.stop_ids else item.new_tokens,
        stop_token_ids=item.stop_ids,
        ignore_eos=True,
    )
    for step in range(item.total):
        with item.timed("rollout"):
            drawn = llm.generate(item.batch(step), settings, use_tqdm=False)
        assert {len(one.prompt_token_ids) for one in drawn} == {item.prompt_tokens}
        item.count(len(sample.token_ids) for one in drawn for sample in one.outputs)
        llm.reset_prefix_cache()  # the weights change after every step


if __name__ == "__main__":
    main()
    item.report("vllm")
