"""Run under another transformers version: read configs, and print what they say as JSON."""

import inspect
import json
import sys

import transformers
from transformers import AutoConfig, GenerationConfig

found = []
for folder in sys.argv[1:]:
    config = AutoConfig.from_pretrained(folder)
    generation = GenerationConfig.from_pretrained(folder)
    try:
        from transformers import LlamaForCausalLM

        inv_freq = LlamaForCausalLM(config).model.rotary_emb.inv_freq.tolist()
    except ImportError:  # no torch beside this version
        inv_freq = None
    found.append(
        {
            "version": transformers.__version__,
            "known": list(inspect.signature(type(config).__init__).parameters),
            "inv_freq": inv_freq,
            "theta": config.rope_theta,
            "scaling": config.rope_scaling,
            "context": config.max_position_embeddings,
            "bos": config.bos_token_id,
            "eos": config.eos_token_id,
            "pad": config.pad_token_id,
            "tied": config.tie_word_embeddings,
            "dtype": "torch." + str(config.torch_dtype).removeprefix("torch."),
            "sizes": [config.hidden_size, config.head_dim, config.num_key_value_heads, config.vocab_size],
            "generation": [
                generation.bos_token_id,
                generation.eos_token_id,
                generation.do_sample,
                generation.temperature,
                generation.top_p,
            ],
        }
    )
print(json.dumps(found))
