"""Run under torchtitan: its own adapter makes Transformers' tensors of a distributed checkpoint of its names.

Arguments: the checkpoint's folder, the file to write by ``torch.save``, and the numbers of heads, of key heads and of
rows a head, the model's width, and where in ``torchtitan.models.llama3`` the adapter is.
"""

import importlib.util
import sys
import types
from pathlib import Path
from unittest.mock import MagicMock

import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

# The package itself asks for what a trainer needs on a GPU; the adapter does not.
found = importlib.util.find_spec("torchtitan")
assert found is not None
assert found.origin is not None
package = types.ModuleType("torchtitan.models.llama3")
package.__path__ = [str(Path(found.origin).parent / "models/llama3")]
sys.modules["torchtitan.models.llama3"] = package
for name in (
    "torchtitan.models.moe.kernels",
    "torchtitan.models.common.rope",
    "torchtitan.models.llama3.model.model",
):
    sys.modules[name] = MagicMock()

folder, out, *numbers, place = sys.argv[1:]
heads, kv_heads, head_dim, dim = map(int, numbers)
if place == "state_dict_adapter":
    sys.modules["torchtitan.models.llama3.model"] = MagicMock()
adapter = importlib.import_module(f"torchtitan.models.llama3.{place}").Llama3StateDictAdapter
attention = types.SimpleNamespace(n_heads=heads, n_kv_heads=kv_heads, head_dim=head_dim)
settings = types.SimpleNamespace(
    n_heads=heads, n_kv_heads=kv_heads, dim=dim, enable_weight_tying=False,
    layers=[types.SimpleNamespace(attention=attention)],
)  # fmt: skip
dcp_to_torch_save(folder, f"{out}.whole")
state = torch.load(f"{out}.whole", weights_only=False)
state = {name: one for name, one in state.items() if isinstance(one, torch.Tensor) and name != "freqs_cis"}
torch.save(adapter(settings, None).to_hf(state), out)
