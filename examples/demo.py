"""Convert a small Llama 2 on a local Ray, prove it, load it, and let it speak.

    python examples/demo.py [FOLDER]

FOLDER holds stories260K.bin and tok512.bin, a model of karpathy/tinyllamas that was trained to tell stories. Where none
is given, and none lies in ../shared/data/stories260K beside this checkout, weights are random, and so is what is said.
"""

import argparse
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from small_models import STORY_FILES, write_random_model, write_story_model

SHARDS = 4
STORIES = Path(__file__).resolve().parents[2] / "shared" / "data" / "stories260K"


def find_stories(given: Path | None) -> Path | None:
    """Give the folder with the trained model, if there is one; one that was named must have its files."""
    folder = given or STORIES
    missing = [name for name in STORY_FILES if not (folder / name).is_file()]
    if given and missing:
        sys.exit(f"{folder}: holds no {' and no '.join(missing)}")
    return None if missing else folder


def run(*arguments: str, cwd: Path) -> None:
    """Run a command as a person would, showing it first and its time afterwards."""
    print(f"\n$ distconv {shlex.join(arguments)}", flush=True)
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "distconv", *arguments], cwd=cwd, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    print(f"({time.monotonic() - started:.1f} s)", flush=True)


def main() -> None:
    """Go the whole way."""
    parser = argparse.ArgumentParser(
        description="Convert a small Llama 2 on a local Ray, prove it, load it, and let it speak."
    )
    parser.add_argument(
        "folder", metavar="FOLDER", nargs="?", type=Path,
        help=f"with {' and '.join(STORY_FILES)} of karpathy/tinyllamas; without it weights are random",
    )  # fmt: skip
    stories = find_stories(parser.parse_args().folder)
    with tempfile.TemporaryDirectory(prefix="distconv-demo-") as name:
        folder = Path(name)
        if stories:
            print(
                f"A Llama 2 that tells stories, of 260,000 parameters, in {SHARDS} shards as Meta has them."
            )
            write_story_model(folder / "llama-2", stories, SHARDS)
        else:
            print(f"A Llama 2 of random weights, in {SHARDS} shards as Meta has them.")
            write_random_model(folder / "llama-2", SHARDS)
        run("inspect", "llama-2", cwd=folder)
        print("\nOn a local Ray, which takes some seconds to start:")
        run("convert", "llama-2", "llama-2-hf", "--workers", "2", "--max-shard-size", "4MB", cwd=folder)
        run("verify", "llama-2-hf", "--against", "llama-2", "--generate", "Once upon a time", cwd=folder)
        if not stories:
            print("Its weights are random, and so is what it says.")
    print(f"{folder} is removed again: `next:` above is for models of your own.")


if __name__ == "__main__":
    main()
