"""TRL's GRPOTrainer, its rollouts by the model's own ``generate``: python trl_grpo.py FOLDER

The update is what remains of an optimizer step when its batch has been sampled and scored.
"""

import tempfile
import time

from clock import Item, reward

item = Item(__doc__)

import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback  # noqa: E402
from trl import GRPOConfig, GRPOTrainer  # noqa: E402


class Timed(GRPOTrainer):
    def _generate(self, prompts):
        with item.timed("rollout"):
            out = super()._generate(prompts)
        assert {len(tokens) for tokens in out[0]} == {item.prompt_tokens}
        assert {len(tokens) for tokens in out[1]} == {item.new_tokens}
        return out

    def _generate_and_score_completions(self, inputs):
        began = time.perf_counter()
        out = super()._generate_and_score_completions(inputs)
        self.collecting = time.perf_counter() - began
        return out


class Steps(TrainerCallback):
    def on_step_begin(self, *_, **__):
        self.began = time.perf_counter()

    def on_step_end(self, *_, **__):
        seconds = time.perf_counter() - self.began
        item.seconds["step"].append(seconds)
        item.seconds["update"].append(seconds - trainer.collecting)


with tempfile.TemporaryDirectory() as folder:
    config = GRPOConfig(
        output_dir=folder,
        use_cpu=not torch.cuda.is_available(),
        bf16=item.model["dtype"] == "bfloat16",
        gradient_checkpointing=False,
        per_device_train_batch_size=item.micro * item.candidates,
        gradient_accumulation_steps=item.prompts // item.micro,
        steps_per_generation=item.prompts // item.micro,
        num_generations=item.candidates,
        num_iterations=1,
        max_completion_length=item.new_tokens,
        generation_kwargs={"min_new_tokens": item.new_tokens},
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        beta=0.0,
        epsilon=0.2,
        loss_type="grpo",
        scale_rewards="group",
        learning_rate=1e-4,
        lr_scheduler_type="constant",
        optim="adamw_torch",
        adam_beta1=0.9,
        adam_beta2=0.999,
        weight_decay=0.01,
        max_grad_norm=1.0,
        max_steps=item.total,
        shuffle_dataset=False,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        seed=0,
    )
    trainer = Timed(
        model=AutoModelForCausalLM.from_pretrained(item.folder, dtype=item.model["dtype"]),
        reward_funcs=lambda completions, **_: list(map(reward, completions)),
        args=config,
        train_dataset=Dataset.from_list([{"prompt": t} for s in range(item.total) for t in item.batch(s)]),
        processing_class=AutoTokenizer.from_pretrained(item.folder, padding_side="left"),
        callbacks=[Steps()],
    )
    before = [p.detach().clone() for p in trainer.model.parameters()]
    trainer.train()
    pairs = zip(trainer.model.parameters(), before, strict=True)
    assert any(not torch.equal(new, old) for new, old in pairs), "nothing was trained"

item.report("trl")
