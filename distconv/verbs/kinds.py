"""Which kind of folder INPUT is: what a trainer saved, a Transformers model, or Meta's layout."""

import contextlib
from collections.abc import Iterator
from enum import Enum

from distconv.formats.safetensors.folder import is_transformers
from distconv.output.descriptions import telling_unfinished
from distconv.storage.base import Storage
from distconv.verbs.options import Options
from distconv.verbs.trained_input import is_trained, refuse_like


class Kind(Enum):
    """Whose names INPUT's files have."""

    TRAINED = "trained"
    TRANSFORMERS = "transformers"
    META = "meta"
    """Also where no model is found, which whoever reads it says."""


def tell_kind(storage: Storage, options: Options) -> Kind:
    """Tell INPUT's kind by names alone; --params says that its tensors are Meta's."""
    if is_trained(storage, options):
        return Kind.TRAINED
    if options.params is None and is_transformers(storage, options.source):
        return Kind.TRANSFORMERS
    return Kind.META


@contextlib.contextmanager
def reading_kind(storage: Storage, options: Options) -> Iterator[Kind]:
    """Give INPUT's kind to a block that reads it; UsageError for options that are about another kind.

    An InputError of the block says of an INPUT that is a conversion's unfinished OUTPUT just that.
    """
    with telling_unfinished(storage, options.source):
        kind = tell_kind(storage, options)
        if kind is not Kind.TRAINED:
            refuse_like(storage, options)
        yield kind
