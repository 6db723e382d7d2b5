"""What stands beside the chunks: config, tokenizer, licence, index and receipt, as bytes."""

import os
from collections.abc import Iterable

from distconv.errors import DistconvError, InputError
from distconv.families.llama import Family
from distconv.formats.safetensors.chunks import make_index_file
from distconv.output.loading import SMALL_FILE_BYTES
from distconv.planning.plan import Plan
from distconv.sidecars.chat import CHAT_TEMPLATES
from distconv.sidecars.config import CONFIG_NAME, to_json
from distconv.sidecars.tokenizer import Vocabulary, make_tokenizer_files
from distconv.storage.base import Storage, read_small
from distconv.verbs.checkpoint import Checkpoint
from distconv.verbs.model_config import choose_longest, make_model_config, make_processor


def make_family_tokenizer(
    vocabulary: Vocabulary, family: Family, context: int, *, instruct: bool
) -> dict[str, bytes]:
    """Make a tokenizer's files as a family has them; InputError where none can be made of the vocabulary.

    ``context`` is the model's longest sequence, in tokens.
    """
    try:
        return make_tokenizer_files(
            vocabulary,
            special_tokens=family.special_tokens,
            context=context,
            instruct=instruct,
            chat_template=CHAT_TEMPLATES[family.chat] if instruct and family.chat else None,
        )
    except (DistconvError, OSError, MemoryError, KeyboardInterrupt, SystemExit):
        raise
    # Whatever a strange vocabulary makes of the tokenizers library, whose panics are no Exception.
    except BaseException as error:  # noqa: BLE001
        first, *_ = [*str(error).splitlines(), ""]
        raise InputError(
            f"{vocabulary.path}: no tokenizer can be made of it ({type(error).__name__}: {first})"
        ) from None


def read_legal(storage: Storage, paths: Iterable[str]) -> dict[str, bytes]:
    """Read the texts of licence and policy, by their names."""
    return {os.path.basename(path): read_small(storage, path, SMALL_FILE_BYTES) for path in paths}


def make_files(storage: Storage, checkpoint: Checkpoint, plan: Plan) -> dict[str, bytes]:
    """Make every small file, in the order of writing: the mark is the last one; without a tokenizer none of it."""
    config, generation = make_model_config(checkpoint, plan)
    files = read_legal(storage, checkpoint.files.legal)
    if checkpoint.vocabulary is not None:
        choice, context = checkpoint.choice, choose_longest(checkpoint)
        files |= make_family_tokenizer(
            checkpoint.vocabulary, choice.family, context, instruct=choice.instruct
        )
    files |= make_processor(checkpoint)
    files["generation_config.json"] = to_json(generation)
    files[CONFIG_NAME] = to_json(config)
    return files | make_index_file(plan.files)
