"""What a pretrained model can do, in words: its scores in a sentence, and samples of its work."""

from typing import Any

import jax
import numpy as np

from bertjax.causal_lm import BertLMHeadModel
from bertjax.data.pretraining import PretrainingExamples
from bertjax.generation import generate
from bertjax.generation_config import GenerationConfig
from bertjax.heads import BertForPreTraining
from bertjax.pretrain_data import Data
from bertjax.tokenizer import BertTokenizer


def commonest_token(examples: PretrainingExamples, count: int = 1024) -> int:
    """Return the token that is to be found most often in the first `count` examples."""
    batch = examples.batch(np.arange(count))
    if examples.masks:
        return int(np.bincount(batch["mlm_labels"][batch["mlm_weights"] > 0]).argmax())
    return int(np.bincount(batch["input_ids"][:, 1:][batch["attention_mask"][:, 1:] > 0]).argmax())


def summary(values: dict[str, float]) -> str:
    """Return the final figures in a sentence."""
    name = "next-token" if "lm_accuracy" in values else "MLM"
    ours = values["lm_accuracy" if "lm_accuracy" in values else "mlm_accuracy"]
    common = values["common_token_accuracy"]
    text = (
        f"held-out {name} accuracy {100 * ours:.2f}%, {ours / max(common, 1e-9):.2f} times the "
        f"{100 * common:.2f}% of always guessing the commonest token"
    )
    if "perplexity" in values:
        text += f"; perplexity {values['perplexity']:.1f}"
    if "sentence_accuracy" in values:
        hits, error = values["sentence_accuracy"], values["sentence_accuracy_stderr"]
        text += (
            f"; sentence pairs {100 * hits:.1f}% +- {100 * error:.1f}% (standard error), the "
            f"commoner answer {100 * values['common_label_accuracy']:.1f}%"
        )
    return text


def samples(
    model: BertForPreTraining | BertLMHeadModel, params: Any, data: Data, tokenizer: BertTokenizer
) -> list[str]:
    """Return lines that show what a model does with held-out text.

    Args:
      model: the module.
      params: its parameters, on the host.
      data: the run's data, with a held-out split.
      tokenizer: of the run.
    """
    if isinstance(model, BertLMHeadModel):
        told = "beginnings of held-out sentences, and how the model goes on:"
        lines = written_on(model, params, data, tokenizer)
    else:
        told = "masked words of the held-out text, with the model's three best guesses:"
        lines = filled_masks(model, params, data)
    return [told, *("  " + line for line in lines)]


def written_on(
    model: BertLMHeadModel,
    params: Any,
    data: Data,
    tokenizer: BertTokenizer,
    rows: int = 4,
    known: int = 8,
) -> list[str]:
    """Return beginnings of held-out rows, each with a sample of what might follow.

    Args:
      model: the module.
      params: its parameters, on the host.
      data: the run's data, with a held-out split.
      tokenizer: of the run.
      rows: number of lines.
      known: tokens that each begins with, [CLS] among them.
    """
    assert data.held_out is not None
    batch = data.held_out.batch(np.arange(64))
    long_enough = batch["attention_mask"][:, known - 1] > 0
    prompts = batch["input_ids"][long_enough][:rows, :known]
    room = model.config.max_position_embeddings - known
    if not len(prompts) or not room:
        return []
    settings = GenerationConfig(
        max_new_tokens=min(24, room), do_sample=True, top_p=0.9, eos_token_id=data.special.sep
    )
    written = generate(model, params, prompts, settings=settings).sequences
    return [
        f"{tokenizer.decode(prompt, skip_special_tokens=True)} ->"
        f" {tokenizer.decode(row[known:], skip_special_tokens=True)}"
        for prompt, row in zip(prompts, np.asarray(written), strict=True)
    ]


def filled_masks(
    model: BertForPreTraining, params: Any, data: Data, rows: int = 4, reach: int = 8
) -> list[str]:
    """Return lines of held-out text around a masked token, with the three best guesses.

    Args:
      model: the module.
      params: its parameters, on the host.
      data: the run's data, with a held-out split.
      rows: number of lines.
      reach: tokens shown on either side.
    """
    assert data.held_out is not None
    batch = data.held_out.batch(np.arange(64))
    apply = jax.jit(model.apply)
    lines: list[str] = []
    for row in range(64):
        ids, positions = batch["input_ids"][row], batch["mlm_positions"][row]
        hidden = [i for i, p in enumerate(positions) if ids[p] == data.special.mask]
        if not hidden or len(lines) == rows:
            continue
        one = {name: batch[name][row : row + 1] for name in batch}
        logits = apply(
            {"params": params},
            one["input_ids"],
            one["attention_mask"],
            one["token_type_ids"],
            mlm_positions=one["mlm_positions"],
        ).prediction_logits[0, hidden[0]]
        best = np.argsort(-np.asarray(logits))[:3]
        probabilities = np.asarray(jax.nn.softmax(logits))[best]
        place = int(positions[hidden[0]])
        words = [data.pieces[i] for i in ids[max(0, place - reach) : place + reach + 1]]
        text = " ".join(w for w in words if w != data.pieces[data.special.pad]).replace(" ##", "")
        guesses = ", ".join(
            f"{data.pieces[i]} {100 * p:.0f}%" for i, p in zip(best, probabilities, strict=True)
        )
        truth = data.pieces[int(batch["mlm_labels"][row, hidden[0]])]
        lines.append(f"... {text} ... -> {guesses} (was: {truth})")
    return lines
