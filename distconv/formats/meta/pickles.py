"""Read the pickle of a state dict without running anything that it names.

A pickle is a program. Here it runs on a machine of our own, which knows the few opcodes that
torch writes for a state dict, and makes plain containers and inert marks. Whatever the
program says, it takes bounded time and memory: nothing of it is hashed but short text,
nothing is compared, rendered or imported, and no container is copied or gone through twice.
Opcodes: ``pickletools`` of the standard library.
"""

import struct

from distconv.errors import InputError
from distconv.formats.marks import NAMES
from distconv.formats.meta.machine import Language, Machine
from distconv.formats.meta.opcodes import HANDLERS

LIMIT_BYTES = 16 << 20
"""More than any state dict's description takes (405B: 0.2 MB a shard)."""
STATE_DICT = Language(
    NAMES,
    most_steps=1_000_000,  # a tensor takes about 40
    refusal="a state dict of tensors does not need; refused as unsafe: save model.state_dict() alone",
)
_ADVICE = "not a readable torch checkpoint: the file is truncated or damaged: "


class EndsEarlyError(InputError):
    """The pickle goes on behind the bytes that there are."""


def load_pickle(content: bytes, start: int = 0, language: Language = STATE_DICT) -> tuple[object, int]:
    """Run the pickle that begins at ``start``; gives what it makes, and where it ends.

    That is made of dicts with plain names or numbers as keys (entries under other keys are let go), lists,
    tuples, text, numbers, TensorMarks, Records, and OPAQUE for all else. Dicts and lists may hold
    themselves, and may be nested as deep as they like: what goes into them must be bounded.
    Raises InputError for what no state dict needs, EndsEarlyError for content cut short.
    """
    machine = Machine(content, start, language)
    try:
        return machine.run(HANDLERS), machine.position
    except (IndexError, ValueError, struct.error) as error:
        if machine.position >= len(content):
            message = f"its description is cut off at byte {len(content):,}; {_ADVICE}{language.again}"
            raise EndsEarlyError(message) from None
        message = f"its description makes no sense at byte {machine.position:,} ({error}); {_ADVICE}{language.again}"
        raise InputError(message) from None
