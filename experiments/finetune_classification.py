"""Classification of single texts or pairs: banking77, from a small sentence encoder.

    bertjax finetune experiments/finetune_classification.py \\
        --task.train train.csv --task.validation test.csv

For another data set give its task (`--task.name snli`), or for your own table its columns:
`--task.name classification --task.text-columns question --task.label-column topic`.
"""

from bertjax.run_config import FinetuneConfig, OptimizerConfig, TaskConfig

CONFIG = FinetuneConfig(
    run_dir="runs/banking77",
    init_from="sentence-transformers/all-MiniLM-L6-v2",
    task=TaskConfig(name="banking77", sequence_length=64),
    optimizer=OptimizerConfig(learning_rate=2e-4),
    epochs=3,
)
