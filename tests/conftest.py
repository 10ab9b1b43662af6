"""Every test runs with the shapes of public calls checked against their annotations."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from jaxtyping import install_import_hook

install_import_hook(
    [
        f"bertjax.{name}"
        for name in (
            "activations",
            "attention",
            "dropout",
            "heads",
            "losses",
            "model",
            "task_heads",
        )
    ],
    "beartype.beartype",
)
