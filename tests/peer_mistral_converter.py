"""Run under transformers 4.47.1: its converters of Mistral and Mixtral, for each line of JSON on standard input."""

import json
import sys

from transformers.models.mistral import convert_mistral_weights_to_hf as mistral
from transformers.models.mixtral import convert_mixtral_weights_to_hf as mixtral

for line in sys.stdin:
    kind, source, output = json.loads(line)
    if kind == "mixtral":
        mixtral.write_model(output, source, "7B", safe_serialization=True)
    else:
        sys.argv = ["convert_mistral_weights_to_hf.py", source, output]
        mistral.main()
