"""Regression: how alike two sentences are, from 0 to 5 (the STS benchmark).

    bertjax finetune experiments/finetune_regression.py \\
        --task.train sts-train.csv --task.validation sts-dev.csv

Measured on 2026-11-22 with `--max-train-examples 1000 --epochs 2 --optimizer.learning-rate 2e-4
--seeds 3`: Pearson 71.2 +- 2.1, Spearman 73.3 +- 2.0 on 589 pairs (transformers on torch, with the
same recipe: 73.5 +- 2.2 and 75.8 +- 4.1). That is 64 steps: too few for a good score.

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
