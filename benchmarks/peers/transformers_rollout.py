"""transformers' ``generate`` with a cache of its own kind: python transformers_rollout.py FOLDER"""

from clock import Item

item = Item(__doc__)

import torch  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

tokenizer = AutoTokenizer.from_pretrained(item.folder)
model = AutoModelForCausalLM.from_pretrained(item.folder, dtype=item.model["dtype"]).eval()
model.to("cuda" if torch.cuda.is_available() else "cpu")
options = {"eos_token_id": item.stop_ids} if item.stop_ids else {"min_new_tokens": item.new_tokens}
for step in range(item.total):
    prompts = [tokenizer.encode(text) for text in item.batch(step)]
    lengths: list[int] = []
    with item.timed("rollout"), torch.no_grad():
        for i in range(0, item.prompts, item.micro):
            rows = [ids for ids in prompts[i : i + item.micro] for _ in range(item.candidates)]
            rows = torch.tensor(rows, device=model.device)
            drawn = model.generate(
                rows,
                attention_mask=torch.ones_like(rows),
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                max_new_tokens=item.new_tokens,
                pad_token_id=0,  # after a sample's end
                **options,
            )[:, item.prompt_tokens :]
            ends = torch.isin(drawn, torch.tensor(item.stop_ids, device=drawn.device))
            before = (ends.cumsum(-1) == 0).sum(-1)
            lengths += (before + ends.any(-1)).tolist()
    item.count(lengths)

item.report("transformers")
