"""The way from a trainer's checkpoint to a Transformers folder."""

from collections.abc import Mapping

from distconv.errors import InputError
from distconv.families.translate import Decisions
from distconv.formats.boxes import BoxedTensor
from distconv.formats.safetensors.chunks import make_index_file
from distconv.humanize import format_count
from distconv.layout.dtypes import DTYPES, STORABLE
from distconv.layout.files import OutputTensor
from distconv.output.identity import Subject
from distconv.output.targets import TRANSFORMERS
from distconv.planning.plan import Plan, describe_plan, make_plan
from distconv.storage.base import Storage
from distconv.verbs.collector import held_collector
from distconv.verbs.compare_trained import compare_trained
from distconv.verbs.like import make_sidecars
from distconv.verbs.options import Options
from distconv.verbs.prepared import Prepared
from distconv.verbs.questions import Answers
from distconv.verbs.trained import TrainedModel


def _plan(model: TrainedModel, options: Options) -> Plan:
    """Plan the chunks of a trainer's checkpoint."""
    dtype = None if options.dtype == "auto" else DTYPES[options.dtype]
    decisions = Decisions(tied=bool(model.architecture.tied), kv_replication=1)
    with held_collector():
        return make_plan(model.make_targets(dtype), decisions, options.max_shard_size)


def _subject_of(model: TrainedModel) -> Subject:
    """Say what the model is, and by which of the ways of reading it that is known."""
    architecture = model.architecture
    return Subject(architecture.kind, architecture.title, read_as={"dialect": model.dialect_name})


def note_twins(model: TrainedModel) -> tuple[str, ...]:
    """Say what is taken as equal; convert compares it."""
    return tuple(
        f"{twin.name} is left out, as the config says that it is {kept.name}; convert compares them"
        for twin, kept in model.twins
    )


def prepare_trained(
    storage: Storage,
    source: Mapping[str, object],
    model: TrainedModel,
    options: Options,
    answers: Answers | None,
) -> Prepared:
    """Plan the chunks, and make what stands beside them; ``source`` describes INPUT's files.

    Without ``answers`` what the config says of twins is taken as true.
    """
    for twin, kept in model.twins:
        if answers is not None and not answers.are_tied(_target(kept), _target(twin)):
            raise InputError(
                f"{twin.name} differs from {kept.name}, and {model.like.config_path} says that they are one: let it say "
                '"tie_word_embeddings": false in a copy of that folder, and give that by `like=`'
            )
    twins = note_twins(model) if answers is None else _say_twins(model)
    plan = _plan(model, options)
    files = make_sidecars(storage, model.like, plan)
    return Prepared(
        subject=_subject_of(model),
        plan=plan,
        files=files | make_index_file(plan.files),
        source=source,
        sources=format_count(len(model.files.weights), "file"),
        target=TRANSFORMERS,
        shards=None,
        notes=(*model.notes, *twins, *_note_dtype(model, plan, options), *describe_plan(plan)),
        compare=lambda storage, headers, progress: compare_trained(storage, model, headers, progress),
    )


def _say_twins(model: TrainedModel) -> tuple[str, ...]:
    return tuple(f"{twin.name} equals {kept.name}, and is left out" for twin, kept in model.twins)


def _note_dtype(model: TrainedModel, plan: Plan, options: Options) -> tuple[str, ...]:
    """Say where trained weights are kept in another type than the model has that they are like, as trainers keep theirs."""
    wanted, path = model.like.dtype, model.like.config_path
    if options.dtype != "auto" or wanted == plan.dtype.name or wanted not in {one.name for one in STORABLE}:
        return ()
    return (f"stored as {plan.dtype}, and kept so; {path} says {wanted}, to which `dtype='{wanted}'` casts",)


def _target(boxed: BoxedTensor) -> OutputTensor:
    whole = boxed.whole()
    return OutputTensor(boxed.name, boxed.name, boxed.shape, boxed.dtype, boxed.dtype, whole.copies)
