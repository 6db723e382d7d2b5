"""Run under transformers 4.47.1: its own converter, as its users ran it, for each line of arguments on standard input."""

import json
import sys

from transformers.models.llama import convert_llama_weights_to_hf

for line in sys.stdin:
    sys.argv = ["convert_llama_weights_to_hf.py", *json.loads(line)]
    convert_llama_weights_to_hf.main()
