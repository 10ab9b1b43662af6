"""Answers to questions, as spans of a passage (files in SQuAD's layout).

    bertjax finetune experiments/finetune_questions.py \\
        --task.train train-v1.1.json --task.validation dev-v1.1.json
    bertjax finetune experiments/finetune_questions.py --task.name squad_v2 --run-dir runs/squad2 \\
        --task.train train-v2.0.json --task.validation dev-v2.0.json

Measured on 2026-11-23 on new_wiki (in the form of SQuAD 1.1, 4,645 questions) with `--epochs 2
--task.sequence-length 256`: F1 63.2, exact match 46.4 on 1,055 others (one seed, 30 minutes of a
core). With 600 questions F1 was 14.9: answers need thousands of examples.

Passages longer than `task.sequence_length` are read in windows that begin `task.doc_stride` tokens
after one another.
"""

from bertjax.run_config import FinetuneConfig, OptimizerConfig, TaskConfig

CONFIG = FinetuneConfig(
    run_dir="runs/squad",
    init_from="sentence-transformers/all-MiniLM-L6-v2",
    task=TaskConfig(name="squad", sequence_length=384, doc_stride=128),
    optimizer=OptimizerConfig(learning_rate=1e-4),
    epochs=2,
    batch_size=16,
)
