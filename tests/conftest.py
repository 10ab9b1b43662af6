"""Every test runs with the shapes of public calls checked against their annotations."""

import os
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Commands keep compiled programs there, and not in the home of whoever runs the tests.
os.environ["XDG_CACHE_HOME"] = os.path.join(tempfile.gettempdir(), f"bertjax-tests-{os.getuid()}")

from jaxtyping import install_import_hook

install_import_hook(
    [
        f"bertjax.{name}"
        for name in (
            "activations",
            "attention",
            "causal_lm",
            "dropout",
            "encoder",
            "encoder_decoder",
            "heads",
            "losses",
            "model",
            "task_heads",
        )
    ],
    "beartype.beartype",
)
