"""Run under another transformers version: make pixels and ids of an image and a question, and print them as JSON."""

import json
import sys

import transformers
from PIL import Image
from transformers import AutoProcessor

processor = AutoProcessor.from_pretrained(sys.argv[1])
messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}]
text = processor.apply_chat_template(messages, add_generation_prompt=True)
made = processor(Image.open(sys.argv[2]), text, add_special_tokens=False, return_tensors="pt")
print(
    json.dumps(
        {
            "version": transformers.__version__,
            "messages": messages,
            "text": text,
            "ids": made["input_ids"].tolist(),
            "sums": made["pixel_values"].double().sum((-1, -2)).flatten().tolist(),
        }
    )
)
