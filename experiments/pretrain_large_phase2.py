"""BERT-large with LAMB, phase 2: 1,563 steps of 32,768 rows of 512 tokens (NVIDIA's recipe).

    bertjax pretrain experiments/pretrain_large_phase2.py --run-dir /mnt/runs/large2 \
        --init-from /mnt/runs/large1 --data.dataset /mnt/corpus --mesh.fsdp 8 --distributed

Rate 4e-3, warmup over 12.8 % of the steps, polynomial decay of degree 0.5. Step count and schedule
start anew as in NVIDIA's; so do the moments, which NVIDIA keeps. Not run: the program is built at
full size in the tests, and its time and score are unknown.
"""

from bertjax.config import BertConfig
from bertjax.run_config import CheckpointConfig, DataConfig, OptimizerConfig, PretrainConfig

CONFIG = PretrainConfig(
    run_dir="runs/large_phase2",
    init_from="runs/large_phase1",
    model=BertConfig.preset("large", scan_unroll=1, remat=True),
    data=DataConfig(sequence_length=512, max_predictions_per_seq=80, workers=16),
    optimizer=OptimizerConfig(
        name="lamb",
        learning_rate=4e-3,
        schedule="polynomial",
        power=0.5,
        end_learning_rate=0.0,
        warmup_steps=200,
    ),
    checkpoint=CheckpointConfig(every=100),
    train_steps=1_563,
    batch_size=32_768,
    accumulation_steps=64,
    dtype="bfloat16",
    log_every=1,
    eval_every=200,
)
