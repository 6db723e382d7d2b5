"""Whether a Transformers folder has what an instruct model talks by."""

from distconv.output.findings import Finding
from distconv.sidecars.settings import read_chat_template
from distconv.storage.base import Storage


def find_missing_template(storage: Storage, output: str) -> list[Finding]:
    """Tell where a folder that is said to be an instruct model's has no chat template, whichever it is."""
    return [describe_no_template(output)] if read_chat_template(storage, output) is None else []


def describe_no_template(output: str) -> Finding:
    """Say that an instruct model has no chat template."""
    words = f"{output}: no chat template, which an instruct model has; convert with `instruct=True`, or take it as a base model"
    return Finding(words)
