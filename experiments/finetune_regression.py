"""Regression: how alike two sentences are, from 0 to 5 (the STS benchmark).

    bertjax finetune experiments/finetune_regression.py \\
        --task.train sts-train.csv --task.validation sts-dev.csv

Measured on 2026-11-22 with `--max-train-examples 1000 --epochs 4 --optimizer.learning-rate 2e-4
--seeds 3`: Pearson 81.1 +- 1.7, Spearman 82.7 +- 1.5 on 589 pairs (transformers on torch, with the
same recipe: 80.1 +- 3.2 and 81.2 +- 2.9).

For your own table name its columns, one or two of text:
`--task.name regression --task.text-columns review --task.label-column stars`.
"""

from bertjax.run_config import FinetuneConfig, OptimizerConfig, TaskConfig

CONFIG = FinetuneConfig(
    run_dir="runs/stsb",
    init_from="sentence-transformers/all-MiniLM-L6-v2",
    task=TaskConfig(name="stsb", sequence_length=128),
    optimizer=OptimizerConfig(learning_rate=1e-4),
    epochs=3,
)
