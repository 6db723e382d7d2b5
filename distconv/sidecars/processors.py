"""What turns images into pixels and prompts for Transformers: preprocessor_config.json and processor_config.json.

They are in the form of transformers 4.57, which 5.23 reads, too; 4.57 cannot read what 5.23 writes for Llama 4.
"""

from collections.abc import Mapping

from distconv.families.dimensions import Llama4Dimensions, MllamaDimensions
from distconv.formats.meta.multimodal import Llama4Params
from distconv.sidecars.config import to_json

PREPROCESSOR_NAME = "preprocessor_config.json"
PROCESSOR_NAME = "processor_config.json"
VIDEO_PREPROCESSOR_NAME = "video_preprocessor_config.json"
_BILINEAR = 2
_IMAGE = "<|image|>"
_COMMON: Mapping[str, object] = {
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "resample": _BILINEAR,
    "rescale_factor": 1 / 255,
}
_MOST_TILES = 16
"""Of Llama 4's images, the whole image apart (``llama4/chat_format.py``, ``max_num_chunks``)."""


def make_mllama_processor(sizes: MllamaDimensions) -> dict[str, bytes]:
    """Make the file of Llama 3.2 Vision, by ``llama3/multimodal/image_transform.py``."""
    settings = {
        **_COMMON,
        "do_pad": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_processor_type": "MllamaImageProcessor",
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "max_image_tiles": sizes.vision.tiles,
        "processor_class": "MllamaProcessor",
        "size": _square(sizes.vision.image_size),
    }
    return {PREPROCESSOR_NAME: to_json(settings)}


def make_llama_4_processor(sizes: Llama4Dimensions, params: Llama4Params) -> dict[str, bytes]:
    """Make the files of Llama 4, by ``llama4/preprocess.py``."""
    settings = {
        **_COMMON,
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "Llama4ImageProcessorFast",
        "image_std": [0.5, 0.5, 0.5],
        "max_patches": _MOST_TILES,
        "processor_class": "Llama4Processor",
        "resize_to_max_canvas": False,
        "size": _square(sizes.vision.image_size),
    }
    prompts = {
        "fake_image_token": _IMAGE,
        "image_token": _IMAGE,
        "patch_size": sizes.vision.patch,
        "pixel_shuffle_ratio": params.tower.pixel_shuffle_ratio,
        "processor_class": "Llama4Processor",
    }
    return {PREPROCESSOR_NAME: to_json(settings), PROCESSOR_NAME: to_json(prompts)}


def _square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}
