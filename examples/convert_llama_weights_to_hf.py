"""Take the flags of the script of this name that Transformers had, and convert with distconv.

    python examples/convert_llama_weights_to_hf.py --input_dir raw-llama2-7b --output_dir llama2_7b_hf

The model's size, version and number of shards are read from the files. Where the old flags say
something else than the files, the files' own word is not overruled silently: it is an error.
"""

import argparse
import os
import sys

from distconv.cli import main

FAMILIES = {
    "1": "llama-1", "2": "llama-2", "3": "llama-3", "3.1": "llama-3.1", "3.2": "llama-3.2",
    "3.3": "llama-3.3", "Guard-3": "llama-guard-3",
}  # fmt: skip
SIZES = (
    "1B",
    "3B",
    "7B",
    "7Bf",
    "8B",
    "8Bf",
    "13B",
    "13Bf",
    "30B",
    "34B",
    "65B",
    "70B",
    "70Bf",
    "405B",
    "405B-MP16",
)
TOKENIZER_ONLY = "tokenizer_only"


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the old flags, and refuse what has no counterpart, with the reason."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--input_dir", required=True, help="a model's folder, or one with model folders in it"
    )
    parser.add_argument("--output_dir", required=True)
    parser.add_argument(
        "--model_size", choices=(*SIZES, TOKENIZER_ONLY), help="which folder of INPUT_DIR; f: chat"
    )
    parser.add_argument(
        "--llama_version",
        choices=tuple(FAMILIES),
        help="where the files are ambiguous; sets distconv's --family",
    )
    parser.add_argument("--num_shards", type=int, help="how many consolidated.*.pth are expected")
    parser.add_argument("--instruct", action="store_true", help="an instruct (chat) model")
    parser.add_argument("--safe_serialization", nargs="?", const="true", default="true")
    parser.add_argument("--special_tokens", nargs="+")
    parser.add_argument("--push_to_hub", action="store_true")
    found = parser.parse_args(arguments)
    if found.safe_serialization.lower() not in {"true", "1", "yes"}:
        parser.error(
            "--safe_serialization false: .bin files run code when they are loaded, and distconv writes safetensors "
            "alone, which every Transformers since 4.26 loads; for .bin, load OUTPUT_DIR and save it with torch.save"
        )
    if found.special_tokens:
        parser.error(
            "--special_tokens: each family's own are added; add others with tokenizer.add_special_tokens"
        )
    folder = find_folder(found.input_dir, found.model_size)
    shards = count_shards(folder)
    if found.num_shards is not None and found.model_size != TOKENIZER_ONLY and found.num_shards != shards:
        parser.error(f"--num_shards {found.num_shards}: {folder} has {shards}")
    found.folder = folder
    return found


def find_folder(folder: str, size: str | None) -> str:
    """Give the model's folder: INPUT_DIR itself, or SIZE or Meta's own name for it, one level down."""
    if size is None or size == TOKENIZER_ONLY or count_shards(folder):
        return folder
    base = size.removesuffix("f").lower()
    chat = "-chat" if size.endswith("f") else ""
    names = (size, f"llama-2-{base}{chat}", f"Llama-2-{base}{chat}", f"CodeLlama-{base}")
    there = [os.path.join(folder, name) for name in names if count_shards(os.path.join(folder, name))]
    return there[0] if there else os.path.join(folder, size)


def count_shards(folder: str) -> int:
    """Count a folder's consolidated.*.pth."""
    if not os.path.isdir(folder):
        return 0
    return sum(name.startswith("consolidated.") and name.endswith(".pth") for name in os.listdir(folder))


def translate(found: argparse.Namespace) -> list[str]:
    """Give distconv's own command line."""
    verb = "tokenizer" if found.model_size == TOKENIZER_ONLY else "convert"
    command = [verb, found.folder, found.output_dir]
    if found.llama_version is not None:
        family = FAMILIES[found.llama_version]
        is_small = family == "llama-guard-3" and found.model_size == "1B"
        command += ["--family", "llama-guard-3-1b" if is_small else family]
    chat = found.model_size is not None and found.model_size.endswith("f")
    return [*command, "--instruct"] if found.instruct or chat else command


if __name__ == "__main__":
    wanted = parse(sys.argv[1:])
    main(translate(wanted))
    if wanted.push_to_hub:
        # Into a private repository of the folder's name, as the old script did.
        main(["push", wanted.output_dir, os.path.basename(os.path.abspath(wanted.output_dir))])
