"""BERT-large with LAMB, phase 1: 7,038 steps of 65,536 rows of 128 tokens (NVIDIA's recipe).

    bertjax pretrain experiments/pretrain_large_phase1.py --run-dir /mnt/runs/large1 \
        --data.dataset /mnt/corpus --mesh.fsdp 8 --distributed

Rate 6e-3, warmup over 28.43 % of the steps, polynomial decay of degree 0.5 (LAMB: arXiv
1904.00962). `accumulation_steps` fits the batch to the memory at hand; it changes nothing else.
Not run: the program is built at full size in the tests, and its time and score are unknown.
"""

from bertjax.config import BertConfig
from bertjax.run_config import CheckpointConfig, DataConfig, OptimizerConfig, PretrainConfig

CONFIG = PretrainConfig(
    run_dir="runs/large_phase1",
    model=BertConfig.preset("large", scan_unroll=1),
    data=DataConfig(sequence_length=128, max_predictions_per_seq=20, workers=16),
    optimizer=OptimizerConfig(
        name="lamb",
        learning_rate=6e-3,
        schedule="polynomial",
        power=0.5,
        end_learning_rate=0.0,
        warmup_steps=2_001,
    ),
    checkpoint=CheckpointConfig(every=200),
    train_steps=7_038,
    batch_size=65_536,
    accumulation_steps=32,
    dtype="bfloat16",
    log_every=1,
    eval_every=500,
)
