"""google-tunix's own sampler, on one device: python tunix_rollout.py FOLDER"""

from clock import Item

item = Item(__doc__)

from transformers import AutoTokenizer  # noqa: E402
from tunix.generate import sampler as samplers  # noqa: E402
from tunix.generate import tokenizer_adapter  # noqa: E402
from tunix_model import load  # noqa: E402

m = item.model
mesh, model = load(item)
sampler = samplers.Sampler(
    transformer=model,
    tokenizer=tokenizer_adapter.TokenizerAdapter(AutoTokenizer.from_pretrained(item.folder)),
    cache_config=samplers.CacheConfig(
        cache_size=item.prompt_tokens + item.new_tokens,
        num_layers=m["layers"],
        num_kv_heads=m["kv_heads"],
        head_dim=m["head_size"],
    ),
)
ends = item.stop_ids or [m["vocab_size"] + 1]  # no token has it
for step in range(item.total):
    texts, lengths = item.batch(step), []
    with item.timed("rollout"), mesh:
        for i in range(0, item.prompts, item.micro):
            out = sampler(
                [text for text in texts[i : i + item.micro] for _ in range(item.candidates)],
                max_generation_steps=item.new_tokens,
                max_prompt_length=item.prompt_tokens,
                temperature=1.0,
                top_p=1.0,
                eos_tokens=ends,
                seed=step * item.prompts + i,
            )
            lengths += [len(tokens) for tokens in out.tokens]
    item.count(lengths)

item.report("tunix")
