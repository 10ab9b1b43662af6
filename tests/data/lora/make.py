"""Make this directory with peft 0.21.2 and transformers 5.

`python make.py`, with those, torch and numpy, writes beside this file: `base/`, a BERT with random
weights; `adapter_model.safetensors` and `adapter_config.json`, adapters of it with random weights,
its next-sentence head trained in full; and `outputs.npz`, what both compute together.
"""

from pathlib import Path

import numpy as np
import peft
import torch
from transformers import BertConfig, BertForPreTraining

HERE = Path(__file__).parent


def main():
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=20,
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=16,
        max_position_embeddings=10,
        initializer_range=0.3,
    )
    base = BertForPreTraining(config).eval()
    base.save_pretrained(HERE / "base")
    lora = peft.LoraConfig(
        r=4,
        lora_alpha=6,
        use_rslora=True,
        target_modules=["query", "value", "attention.output.dense", "pooler.dense"],
        modules_to_save=["seq_relationship"],
    )
    model = peft.get_peft_model(base, lora).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter += 0.3 * torch.randn_like(parameter)
        model.save_pretrained(HERE)
        (HERE / "README.md").unlink()  # a model card to fill in
        ids = torch.randint(0, 20, (2, 7))
        output = model(ids)
    np.savez_compressed(
        HERE / "outputs.npz",
        input_ids=ids.int().numpy(),
        prediction_logits=output.prediction_logits.numpy(),
        seq_relationship_logits=output.seq_relationship_logits.numpy(),
    )


if __name__ == "__main__":
    main()
