"""BERT-base, phase 2: rows of 512 tokens, from the parameters of phase 1.

    bertjax pretrain experiments/pretrain_base_phase2.py --run-dir /mnt/runs/base2 \
        --init-from /mnt/runs/base1 --data.dataset /mnt/corpus --distributed

The last 100,000 of google's million steps. Optimizer and step count start anew, with a short warmup
of their own: google's single schedule would have 10 % of the peak rate left here, so that is the
peak. Not run: the program is built at full size in the tests, and its time and score are unknown.
"""

from bertjax.config import BertConfig
from bertjax.run_config import CheckpointConfig, DataConfig, OptimizerConfig, PretrainConfig

CONFIG = PretrainConfig(
    run_dir="runs/base_phase2",
    init_from="runs/base_phase1",
    model=BertConfig.preset("base", scan_unroll=1),
    data=DataConfig(sequence_length=512, max_predictions_per_seq=77, workers=8),
    optimizer=OptimizerConfig(learning_rate=1e-5, warmup_steps=1_000),
    checkpoint=CheckpointConfig(every=2_000),
    train_steps=100_000,
    batch_size=256,
    dtype="bfloat16",
    log_every=100,
    eval_every=5_000,
)
