"""Load the model of a directory into shardings over 8 devices; print how its parameters lie.

Run with 8 virtual devices (see test_load_save.py).
"""

import json
import sys

import jax
import numpy as np

from bertjax import from_pretrained, sharding
from bertjax.pretrained import names
from bertjax.run_config import MeshConfig

_, whole = from_pretrained(sys.argv[1])
expected = dict(names.parameters(jax.device_get(whole)))
result = {}
for axes in ((2, 2, 2), (1, 8, 1), (1, 4, 2)):
    wanted = sharding.state_shardings(whole, sharding.make_mesh(MeshConfig(*axes)))
    _, params = from_pretrained(sys.argv[1], shardings=wanted)
    assert jax.tree.map(lambda leaf: leaf.sharding, params) == wanted
    found = result["x".join(map(str, axes))] = {}
    for path, leaf in names.parameters(params):
        assert len(leaf.addressable_shards) == 8
        for shard in leaf.addressable_shards:
            np.testing.assert_array_equal(np.asarray(shard.data), expected[path][shard.index])
        parts = [shard.data.size for shard in leaf.addressable_shards]
        found[path] = [leaf.size, max(parts)]
print(json.dumps(result))
