"""Whether a Transformers folder talks as the chat model that it is said to be."""

from distconv.moving.progress import Progress
from distconv.output.chat import describe_no_template
from distconv.output.findings import Finding
from distconv.sidecars.chat import CHAT_TEMPLATES
from distconv.sidecars.settings import read_chat_template
from distconv.storage.base import Storage
from distconv.verbs.checkpoint import Checkpoint


def compare_chat(storage: Storage, output: str, checkpoint: Checkpoint, progress: Progress) -> list[Finding]:
    """List what OUTPUT's chat template lacks of an instruct model's; of another template than ours a note tells.

    Other folders of the same model have others, which may say the same.
    """
    choice = checkpoint.choice
    if not choice.instruct or choice.family.chat is None:
        return []
    found = read_chat_template(storage, output)
    if found is None:
        return [describe_no_template(output)]
    if found != CHAT_TEMPLATES[choice.family.chat]:
        progress.note(
            f"note: {output}: its chat template is another than a conversion of {choice.family.title} gives"
        )
    return []
