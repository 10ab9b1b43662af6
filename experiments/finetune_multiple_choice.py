"""Multiple choice: which of five answers fits the question (CommonsenseQA).

    bertjax finetune experiments/finetune_multiple_choice.py \\
        --task.train train_rand_split.jsonl --task.validation dev_rand_split.jsonl

Measured on 2026-11-22 with `--max-train-examples 1000 --epochs 1`: 36.0 % of 642 questions right
(one seed; one in five by chance).

Other data sets: `--task.name swag`, `--task.name cosmos_qa`.
"""

from bertjax.run_config import FinetuneConfig, OptimizerConfig, TaskConfig

CONFIG = FinetuneConfig(
    run_dir="runs/csqa",
    init_from="sentence-transformers/all-MiniLM-L6-v2",
    task=TaskConfig(name="csqa", sequence_length=64),
    optimizer=OptimizerConfig(learning_rate=1e-4),
    epochs=2,
    batch_size=16,
)
