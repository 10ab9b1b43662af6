"""Tagging of words: entities in new and noisy text (WNUT 2017), or in Wikipedia (Wikigold).

    bertjax finetune experiments/finetune_tagging.py \\
        --task.train wnut17train.conll --task.validation emerging.dev.conll
    bertjax finetune experiments/finetune_tagging.py --task.name wikigold --run-dir runs/wikigold \\
        --task.train wikigold_train.conll --task.validation wikigold_dev.conll

Measured on 2026-11-22 on wikigold with `--epochs 3 --seeds 3`: entity F1 56.3 +- 0.3 on 451
sentences, from 926 (transformers on torch, with the same recipe and two seeds: 56.1 +- 1.6); on
WNUT 2017 with `--max-train-examples 1500 --epochs 3 --seeds 3` 49.2 +- 1.0 (torch 49.2 +- 3.0).

For your own files with a word and a tag a line: `--task.name token_classification`.
"""

from bertjax.run_config import FinetuneConfig, OptimizerConfig, TaskConfig

CONFIG = FinetuneConfig(
    run_dir="runs/wnut17",
    init_from="sentence-transformers/all-MiniLM-L6-v2",
    task=TaskConfig(name="wnut17", sequence_length=128),
    optimizer=OptimizerConfig(learning_rate=3e-4),
    epochs=4,
    batch_size=16,
)
