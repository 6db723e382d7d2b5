"""Run under transformers 4.47.1: its own converter of Llama 3.2 Vision, for each line of JSON on standard input.

The image encoder's sizes are constants in the script; those of a line stand in their place. Nothing else of it changes.
"""

import json
import sys
from pathlib import Path

from transformers.models.mllama import convert_mllama_weights_to_hf as script

SOURCE = Path(script.__file__).read_text(encoding="utf-8")

for line in sys.stdin:
    asked = json.loads(line)
    text = SOURCE
    for old, new in asked["constants"].items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    names: dict[str, object] = {"__name__": "script", "__package__": script.__package__}
    exec(compile(text, script.__file__, "exec"), names)
    names["write_model"](asked["output"], asked["input"], asked["shards"])  # type: ignore[operator]
