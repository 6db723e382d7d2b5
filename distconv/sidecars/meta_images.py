"""config.json of a model with images, read for Meta's code: its sizes, and the params.json that says the same."""

import json
from dataclasses import replace

from distconv.errors import InputError, MismatchError
from distconv.families.choose import find_family
from distconv.families.images import IMAGE_MODELS
from distconv.formats.meta.fields import Fields
from distconv.formats.plain_json import parse_object
from distconv.sidecars import llama_4_config, mllama_config
from distconv.sidecars.meta_config import refuse_class
from distconv.sidecars.meta_llama_4 import read_llama_4
from distconv.sidecars.meta_mllama import read_mllama
from distconv.sidecars.meta_parts import ImageConfig, note_left


def is_image_config(path: str, content: bytes) -> bool:
    """Whether a config.json is that of one of Meta's models with images."""
    return parse_object(path, content).get("model_type") in IMAGE_MODELS


def read_image_config(path: str, content: bytes, *, family: str | None = None) -> ImageConfig:
    """Read config.json; ``family`` overrides what it tells.

    Raises UsageError for an unknown family, and one InputError with all that is wrong or that Meta's code cannot say.
    """
    asked = None if family is None else find_family(family)
    fields = Fields(path, parse_object(path, content))
    is_mllama = fields.get("model_type") == "mllama"
    refuse_class(fields, mllama_config.ARCHITECTURE if is_mllama else llama_4_config.ARCHITECTURE)
    text, vision = fields.open("text_config"), fields.open("vision_config")
    found = (read_mllama if is_mllama else read_llama_4)(fields, text, vision)
    if fields.findings:
        raise InputError.of(fields.findings)
    notes = tuple(f"{path}: {note}" for note in (*found.notes, *note_left(fields)))
    if asked is not None and asked.architecture != found.family.architecture:
        raise MismatchError(
            f"{path}: `family='{asked.name}'` ({asked.title}), but it is a {found.family.title} model; leave `family=` out"
        )
    if asked is None:
        return replace(found, notes=notes)
    return replace(found, family=asked, evidence=("`family=` says so",), notes=notes)


def to_params(config: ImageConfig) -> bytes:
    """Make params.json."""
    return json.dumps(config.params).encode()
