"""Make this directory with transformers 4.57.6, the last line of versions that prunes heads.

`python make.py`, with that version, torch and numpy, writes beside this file: `full/`, a BERT with
random weights and relative positions; `pruned/`, the same after pruning twice; and `outputs.npz`,
what both compute.
"""

from pathlib import Path

import numpy as np
import torch
from transformers import BertConfig, BertModel

HERE = Path(__file__).parent
FIRST, SECOND = {0: [1], 2: [0]}, {0: [1], 2: [2]}


def main():
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=20,
        hidden_size=12,
        num_hidden_layers=3,
        num_attention_heads=3,
        intermediate_size=16,
        max_position_embeddings=10,
        position_embedding_type="relative_key_query",
        initializer_range=0.3,
    )
    model = BertModel(config, add_pooling_layer=False).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(HERE / "full")
    ids, soft_mask = torch.randint(0, 20, (2, 7)), torch.rand(3, 3)
    arrays = {"input_ids": ids.int(), "soft_mask": soft_mask}
    with torch.no_grad():
        arrays["masked"] = model(ids, head_mask=soft_mask).last_hidden_state
        model.prune_heads(FIRST)
        model.prune_heads(SECOND)
        output = model(ids, output_attentions=True)
    arrays["pruned"] = output.last_hidden_state
    arrays |= {f"attentions{i}": a for i, a in enumerate(output.attentions)}
    model.save_pretrained(HERE / "pruned")
    np.savez_compressed(HERE / "outputs.npz", **{k: v.numpy() for k, v in arrays.items()})


if __name__ == "__main__":
    main()
