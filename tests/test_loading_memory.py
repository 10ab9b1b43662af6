"""Loading takes the memory of the parameters once."""

import json
import subprocess
import sys

import pytest

from bertjax import BertConfig, BertForPreTraining
from bertjax.pretrained import save_pretrained
from tests import processes
from tests.peers import quick_params

BENCHMARK = processes.ROOT / "benchmarks" / "load_checkpoint.py"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_loading_safetensors_takes_the_parameters_memory_once(tmp_path):
    model = BertForPreTraining(BertConfig.preset("small"))
    save_pretrained(tmp_path, model, quick_params(model))
    command = [sys.executable, BENCHMARK, "--load", tmp_path]
    out = subprocess.check_output(command, env=processes.environment(), text=True)
    found = json.loads(out.splitlines()[-1])
    assert found["bytes"] > 100e6
    assert found["peak"] < 1.3
