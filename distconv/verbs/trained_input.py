"""A trainer's checkpoint as INPUT: which of its forms it has, and the model that it is said to be like."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from distconv.errors import InputError, UsageError
from distconv.formats.boxes import TrainedFiles, list_views
from distconv.formats.dcp.folder import find_dcp_folders, is_unfinished, read_dcp_folder
from distconv.formats.dcp.rank_files import find_rank_file_folders, read_rank_files
from distconv.formats.meta.foreign import describe_folder
from distconv.formats.meta.small_files import CONFIG_NAME
from distconv.formats.safetensors.ranks import find_rank_folders, find_weight_folders, read_weight_folder
from distconv.formats.views import TensorView
from distconv.output.descriptions import telling_unfinished
from distconv.output.identity import InputFiles
from distconv.sidecars.apart import Answerer
from distconv.sidecars.architecture import Architecture, expect_architecture, read_architecture
from distconv.storage.base import Storage, is_folder, join
from distconv.verbs.collector import held_collector
from distconv.verbs.like import Like, read_like
from distconv.verbs.options import Options
from distconv.verbs.trained import TrainedModel, read_trained

Read = Callable[[Storage, str], TrainedFiles]

_Form = tuple[Callable[[Storage, str], tuple[str, ...]], Read]

_FORMS: tuple[_Form, ...] = (
    (find_dcp_folders, read_dcp_folder),
    (find_rank_folders, read_weight_folder),
    (find_rank_file_folders, read_rank_files),
)
"""What finds the folders of a form that a path leads to, and what reads one."""
_ASKED: tuple[_Form, ...] = (*_FORMS, (find_weight_folders, read_weight_folder))
"""Those that are read so only where --like says that they are a trainer's."""


def _list_forms(options: Options) -> tuple[_Form, ...]:
    return _FORMS if options.like is None else _ASKED


@dataclass(frozen=True, slots=True)
class TrainedInput:
    """What is converted, and what it is like."""

    files: TrainedFiles
    like: Like
    architecture: Architecture
    dialect: str | None

    def list_files(self) -> InputFiles:
        """List the files that must stay as they are for a conversion."""
        return InputFiles(
            self.files.folder,
            (*self.files.weights, *self.like.weight_paths),
            self.like.paths,
            self._read_views,
            read_before=True,
        )

    def read(self, storage: Storage) -> TrainedModel:
        """Read where the model's tensors lie, see ``read_trained``."""
        with held_collector():
            return read_trained(storage, self.files, self.like, self.architecture, self.dialect)

    def _read_views(self, storage: Storage) -> Iterable[TensorView]:
        with held_collector():
            again = replace(self, files=self.files.read_again(storage))
        return list_sources(again.read(storage))


def list_sources(model: TrainedModel) -> Iterable[TensorView]:
    """Give all that is read of INPUT for a model."""
    boxed = {made.source.name: made.source for made in model.made}
    boxed |= {twin.name: twin for twin, _kept in model.twins}
    return list_views(boxed.values())


def is_trained(storage: Storage, options: Options) -> bool:
    """Whether INPUT is what a trainer's ranks left, told by names alone; --params says that it is Meta's."""
    forms = _list_forms(options)
    return options.params is None and any(find(storage, options.source) for find, _read in forms)


def is_being_saved(storage: Storage, options: Options) -> bool:
    """Whether INPUT is a distributed checkpoint that no rank has said to be whole yet."""
    return any(is_unfinished(storage, folder) for folder in find_dcp_folders(storage, options.source))


def by_numbers(name: str) -> list[tuple[int, str]]:
    """Order by the numbers in names, so that step 900 is before step 1000."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def find_trained_files(storage: Storage, options: Options) -> TrainedFiles:
    """Read what INPUT holds; InputError where that is not one whole checkpoint."""
    if options.to != "transformers":
        raise UsageError(
            f"`to='{options.to}'`: of a trainer's checkpoint only a Transformers folder is made; convert that to Meta's layout"
        )
    for find, read in _list_forms(options):
        folders = find(storage, options.source)
        if len(folders) > 1:
            raise InputError(
                f"{options.source}: several checkpoints below it ({', '.join(sorted(folders, key=by_numbers))}); give the path "
                "of one, or convert all of them by `distconv convert --each`"
            )
        if folders:
            with held_collector():
                return read(storage, folders[0])
    raise InputError(f"{options.source}: no checkpoint of a trainer's")


def find_trained(storage: Storage, options: Options) -> TrainedInput:
    """Find INPUT and the model that it is like."""
    with expect_architecture() as answerer:
        return take_like(storage, options, find_trained_files(storage, options), answerer)


def take_like(
    storage: Storage, options: Options, files: TrainedFiles, answerer: Answerer | None = None
) -> TrainedInput:
    """Find the model that INPUT is like, which lies beside it where --like does not say otherwise.

    UsageError for what only Meta's checkpoints have to be told, as config and tokenizer come from that model.
    """
    given = {"`family=`": options.family, "`instruct=`": options.instruct, "`tokenizer=`": options.tokenizer}
    useless = [key for key, value in given.items() if value]
    if useless:
        raise UsageError(
            f"{options.source}: {files.form}: {' and '.join(useless)} would change nothing; config and tokenizer are those of "
            "the model that `like=` gives: leave it out"
        )
    folder = options.like or find_beside(storage, options.source, files.folder)
    if folder is None:
        raise UsageError(
            f"{options.source}: {files.form}, which has neither config nor tokenizer; give the folder of the model that was "
            "trained, local or hf://ORG/REPO, by `like=`"
        )
    with telling_unfinished(storage, folder):
        like = read_like(storage, folder, weights=options.fill_from_like)
    shapes = {name: tensor.shape for name, tensor in files.tensors.items()}
    architecture = read_architecture(like.config_path, like.config, shapes, answerer)
    return TrainedInput(files, like, architecture, options.dialect)


def find_beside(storage: Storage, source: str, folder: str) -> str | None:
    """Find a config that the trainer left beside the weights, or in the folder that was given."""
    for place in dict.fromkeys((folder, source, join(folder, "huggingface"))):
        if storage.find(join(place, CONFIG_NAME)) is not None:
            return place
    return None


def refuse_like(storage: Storage, options: Options) -> None:
    """Raise UsageError for options that mean nothing for INPUT, which is no trainer's checkpoint."""
    if (options.like is not None or options.dialect is not None) and storage.find(options.source) is not None:
        held = f"; {describe_folder(storage, options.source)}" if is_folder(storage, options.source) else ""
        raise UsageError(
            f"{options.source}: no checkpoint of a trainer's (no .metadata here or below), for which `like=` and `dialect=` are; "
            f"leave them out, or give its folder{held}"
        )
