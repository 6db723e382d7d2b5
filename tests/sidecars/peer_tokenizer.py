"""Run under another transformers version: encode, decode and render, and print that as JSON."""

import json
import sys
from pathlib import Path

import transformers

task = json.loads(Path(sys.argv[1]).read_text())
tokenizer = transformers.AutoTokenizer.from_pretrained(task["folder"])
ids = tokenizer(task["strings"])["input_ids"]
print(
    json.dumps(
        {
            "version": transformers.__version__,
            "ids": ids,
            "texts": [tokenizer.decode(row, skip_special_tokens=True) for row in ids],
            "prompt": tokenizer.apply_chat_template(
                task["messages"], tokenize=False, add_generation_prompt=True
            )
            if hasattr(tokenizer, "apply_chat_template") and task.get("messages")
            else None,
            "names": list(tokenizer("a")),
            "special": [
                tokenizer.bos_token_id,
                tokenizer.eos_token_id,
                tokenizer.model_max_length,
                len(tokenizer),
            ],
        }
    )
)
