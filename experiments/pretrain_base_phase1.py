"""BERT-base, phase 1: MLM+NSP on rows of 128 tokens, google's recipe (arXiv 1810.04805, A.2).

    bertjax pretrain experiments/pretrain_base_phase1.py --run-dir /mnt/runs/base1 \
        --data.dataset /mnt/corpus --distributed

900,000 steps of 256 rows, which is the first 90 % of google's million. Not run: the program is
built at full size in the tests, and its time and score are unknown.
"""

from bertjax.config import BertConfig
from bertjax.run_config import CheckpointConfig, DataConfig, OptimizerConfig, PretrainConfig

CONFIG = PretrainConfig(
    run_dir="runs/base_phase1",
    model=BertConfig.preset("base", scan_unroll=1),
    data=DataConfig(sequence_length=128, max_predictions_per_seq=20, workers=8),
    optimizer=OptimizerConfig(learning_rate=1e-4, warmup_steps=10_000),
    checkpoint=CheckpointConfig(every=5_000),
    train_steps=900_000,
    batch_size=256,
    dtype="bfloat16",
    log_every=100,
    eval_every=10_000,
)
