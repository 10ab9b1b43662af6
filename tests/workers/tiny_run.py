"""A pretraining run of seconds, as an experiment file; the tests override its fields."""

from pathlib import Path

from bertjax.config import BertConfig
from bertjax.run_config import CheckpointConfig, DataConfig, OptimizerConfig, PretrainConfig

TEXT = Path(__file__).parent.parent / "data" / "text"

CONFIG = PretrainConfig(
    run_dir="runs/tiny",
    model=BertConfig(
        vocab_size=600,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
    ),
    data=DataConfig(
        text=(str(TEXT / "alice.txt"),),
        validation_text=(str(TEXT / "holmes.txt"),),
        sequence_length=32,
        max_predictions_per_seq=5,
    ),
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=10),
    checkpoint=CheckpointConfig(every=10, keep=2),
    train_steps=60,
    batch_size=8,
    eval_examples=20,
)
