"""Load masked LMs named in the JSON argument; print one JSON line each: what came, or the error."""

import json
import sys

import bertjax

for name, options in json.loads(sys.argv[1]):
    try:
        model, params = bertjax.BertForMaskedLM.from_pretrained(name, **options)
        bias = float(params["cls"]["predictions"]["bias"][0])
        print(json.dumps([type(model).__name__, bias]))
    except bertjax.InputError as error:
        print(json.dumps(str(error)))
