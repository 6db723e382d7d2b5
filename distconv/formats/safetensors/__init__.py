"""The safetensors format, and the chunks and index that Transformers makes of it."""
