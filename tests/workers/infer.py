"""Run several commands of the JSON argument in this process, on whatever devices it has."""

import json
import sys

from bertjax import cli

for arguments in json.loads(sys.argv[1]):
    code = cli.main(arguments)
    if code:
        sys.exit(code)
