"""An image that a model is shown: read by Pillow, prepared by the model's own processor in Transformers."""

import io
import warnings
from importlib import metadata
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from distconv.errors import InputError, UsageError, describe_missing_package
from distconv.sidecars.config import CONFIG_NAME
from distconv.sidecars.settings import read_config
from distconv.storage.base import PathLike, join, read_small
from distconv.storage.local import LocalStorage
from distconv.storage.places import read_local

if TYPE_CHECKING:
    from PIL.Image import Image

_MOST_BYTES = 64 << 20
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""Others are read by old decoders, or by programs that run what is in the file, as PostScript is."""
_UNBOUNDED = ("I", "F")
_MLLAMA = "mllama"
_BY_TORCHVISION = ("llama4",)
"""Models whose processors in Transformers do nothing without it; most others do with Pillow."""


def open_image(path: PathLike) -> "Image":
    """Read an image file, upright, as RGB.

    UsageError where Pillow is missing, InputError for what is no image of at most 64 MiB and, as Pillow sets the limit,
    89 million pixels.
    """
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError as error:
        missing = describe_missing_package("Pillow", "image")
        raise UsageError(f"`image=`: {missing}; or leave it out") from error
    storage, local = LocalStorage(), read_local(path)
    if storage.find(local) is None:
        raise InputError(f"{local}: no such file, expected an image")
    content = read_small(storage, local, _MOST_BYTES)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=_FORMATS) as opened:
                image = ImageOps.exif_transpose(opened)
                if image.mode.startswith("I;16"):
                    # Pillow would cut off what is above 255.
                    image = image.point(lambda value: value / 257).convert("L")
                if image.mode in _UNBOUNDED:
                    raise InputError(f"{local}: pixels of mode {image.mode}, expected 8 or 16 bits each")
                return image.convert("RGB")
    except InputError:
        raise
    except UnidentifiedImageError as error:
        raise InputError(f"{local}: expected an image: {', '.join(_FORMATS)}") from error
    except Exception as error:  # decoders of many formats raise what they like
        raise InputError(f"{local}: an image that Pillow does not read: {error}") from error


def refuse_blind(output: PathLike) -> None:
    """Refuse a model that sees no images, or not with what is installed: UsageError.

    Nothing is asked of Transformers, so that OUTPUT need not be proved before; a folder without a config is let pass.
    """
    storage, path = LocalStorage(), join(read_local(output), CONFIG_NAME)
    if storage.find(path) is None:
        return
    config = read_config(storage, path)
    kind = config.get("model_type")
    if "vision_config" not in config:
        raise UsageError(f"{path}: a {kind} model, which sees no images; leave out `image=`")
    if kind in _BY_TORCHVISION and find_spec("torchvision") is None:
        raise UsageError(
            f"{path}: images for {kind} are prepared by torchvision, which is not installed; install the build that goes "
            f"with torch {metadata.version('torch')}, or leave out `image=`: text alone needs none"
        )


def encode(path: str, text: str, image: "Image", *, is_chat: bool) -> Any:
    """Give what the model takes for an image and a text after it, as the folder's own processor makes it.

    ``is_chat`` says whether they are a user's message, in the folder's template.
    """
    from transformers import AutoProcessor

    kind: Any = AutoProcessor
    processor = kind.from_pretrained(path, trust_remote_code=False, local_files_only=True)
    if not is_chat:
        return processor(images=image, text=processor.image_token + text, return_tensors="pt")
    content = [{"type": "image", "image": image}, {"type": "text", "text": text}]
    return processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True,
        return_tensors="pt",
    )  # fmt: skip


def take_metas_layers(config: Any) -> str | None:
    """Let ``config`` name the layers of the image encoder that Meta's code gives to the text model.

    Says what was changed. Published configs of Llama 3.2 Vision name layers whose inputs are meant (``return_intermediate``
    in ``llama3/multimodal/model.py``); Transformers from 4.55 to 5.23 takes their outputs
    (https://github.com/huggingface/transformers/issues/39785), which are the inputs of the layers that follow.
    """
    if config.model_type != _MLLAMA or not _takes_outputs():
        return None
    from transformers import __version__

    published = config.vision_config.intermediate_layers_indices
    config.vision_config.intermediate_layers_indices = [layer - 1 for layer in published]
    return (
        f"transformers {__version__} takes the outputs of the image encoder's layers {', '.join(map(str, published))}, Meta's "
        f"code their inputs; here the inputs are taken. Elsewhere set vision_config.intermediate_layers_indices to "
        f"{config.vision_config.intermediate_layers_indices} when the model is loaded, but not in the file"
    )


def _takes_outputs() -> bool:
    """Whether this Transformers takes the outputs of the layers that a config of Llama 3.2 Vision names.

    In an encoder whose only layer makes ones of zeros, they are told by the feature behind the last output's.
    """
    import torch
    from transformers.models.mllama.configuration_mllama import MllamaVisionConfig
    from transformers.models.mllama.modeling_mllama import MllamaVisionModel

    config = MllamaVisionConfig(
        hidden_size=1, attention_heads=1, num_hidden_layers=1, num_global_layers=1, intermediate_size=1, image_size=1,
        patch_size=1, max_num_tiles=1, supported_aspect_ratios=[[1, 1]], vision_output_dim=2, intermediate_layers_indices=[0],
    )  # fmt: skip
    kind: Any = MllamaVisionModel
    model = kind(config).eval()
    with torch.inference_mode():
        for parameter in model.parameters():
            parameter.zero_()
        model.transformer.layers[0].mlp.fc2.bias.fill_(1)
        one = torch.ones(1, 1, 1, dtype=torch.long)
        seen = model(
            pixel_values=torch.zeros(1, 1, 1, 3, 1, 1), aspect_ratio_ids=one[0], aspect_ratio_mask=one
        )
    return bool(seen.last_hidden_state[..., -1].any())
