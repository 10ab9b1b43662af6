"""Quickstart: pretrain a small BERT (MLM+NSP) on nine public-domain books, on a laptop CPU.

    bertjax pretrain experiments/quickstart.py

Learns a vocabulary, tokenizes the books, pretrains 4 layers of 256, evaluates on two books that it
never saw, draws curves.png, exports model/ for transformers and fills a few masks.
"""

from pathlib import Path

from bertjax.config import BertConfig
from bertjax.run_config import CheckpointConfig, DataConfig, OptimizerConfig, PretrainConfig

BOOKS = Path(__file__).parent / "data" / "books"

CONFIG = PretrainConfig(
    run_dir="runs/quickstart",
    model=BertConfig.preset("mini", vocab_size=8192, max_position_embeddings=64),
    data=DataConfig(
        text=(str(BOOKS / "*.txt"),),
        validation_text=(str(BOOKS / "held_out" / "*.txt"),),
        layout="book",
        sequence_length=64,
        max_predictions_per_seq=10,
    ),
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=80),
    checkpoint=CheckpointConfig(every=200),
    train_steps=800,
    batch_size=32,
    eval_every=200,
    eval_examples=2048,
)
