"""Several labels a text: the emotions of a comment (GoEmotions, 28 labels).

    bertjax finetune experiments/finetune_multi_label.py \\
        --task.train train.tsv --task.validation dev.tsv

On 2026-11-22 3,000 comments and three epochs at a rate of 1e-4, 282 steps, were too few for it and
for transformers on torch alike: no label reached one half (README.md here).

For your own table: `--task.name multi_label --task.text-columns comment --task.label-column tags`.
"""

from bertjax.run_config import FinetuneConfig, OptimizerConfig, TaskConfig

CONFIG = FinetuneConfig(
    run_dir="runs/goemotions",
    init_from="sentence-transformers/all-MiniLM-L6-v2",
    task=TaskConfig(name="goemotions", sequence_length=64),
    optimizer=OptimizerConfig(learning_rate=3e-4),
    epochs=3,
)
