"""What a checkpoint of Meta's is and what its conversion would be: read and decided without moving data."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

from distconv.errors import InputError
from distconv.families.architectures import LLAMA, MISTRAL, Architecture, tell_architecture
from distconv.families.choose import Choice, choose_family
from distconv.families.dimensions import ModelDimensions
from distconv.families.evidence import Facts
from distconv.families.fused import take_apart
from distconv.families.llama import EMBEDDING, OUTPUT
from distconv.families.missing import refuse_missing_shards
from distconv.families.rules import Match, describe_foreign_tensors, match_rules
from distconv.families.scales import attach_scales
from distconv.families.translate import Decisions, make_targets
from distconv.formats.meta.catalog import Catalog, read_catalog
from distconv.formats.meta.files import SourceFiles, find_files
from distconv.formats.meta.layouts import ShardFiles
from distconv.formats.meta.params import Params, read_params
from distconv.formats.views import TensorView, is_disproved
from distconv.layout.dtypes import DTYPES, DType
from distconv.output.identity import Subject
from distconv.planning.plan import Plan, make_plan
from distconv.sidecars.special_tokens import TOKEN_SETS
from distconv.sidecars.tokenizer import Vocabulary, read_vocabulary
from distconv.storage.base import Storage
from distconv.verbs.questions import Answers
from distconv.verbs.remarks import (
    note_buffers,
    note_copies,
    note_differences,
    note_params,
    note_scales,
    note_unlike_copies,
)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything that is known of INPUT without reading a tensor's data."""

    files: SourceFiles
    params: Params
    catalog: Catalog
    architecture: Architecture
    dimensions: ModelDimensions
    vocabulary: Vocabulary | None
    choice: Choice
    matches: tuple[Match, ...]
    notes: tuple[str, ...]

    def match(self, source: str) -> Match | None:
        """Find the match of a source tensor, if it is there."""
        return next((match for match in self.matches if match.source == source), None)


def read_checkpoint(
    storage: Storage,
    source: str,
    *,
    family: str | None = None,
    instruct: bool | None = None,
    tokenizer: str | None = None,
    params_path: str | None = None,
) -> Checkpoint:
    """Find the files, and read them as ``read_found`` does."""
    files = find_files(storage, source, tokenizer, params_path)
    return read_found(storage, files, family=family, instruct=instruct)


def read_found(
    storage: Storage, files: SourceFiles, *, family: str | None = None, instruct: bool | None = None
) -> Checkpoint:
    """Read all headers of a checkpoint's files, tell the family and match every tensor.

    Raises InputError with all that is wrong of one kind at once.
    """
    params = read_params(storage, files.params)
    architecture = tell_architecture(params)
    catalog = read_catalog(storage, files.shards, files.scales)
    shards = (ShardFiles(number, shard.paths) for number, shard in enumerate(catalog))
    files = replace(files, shards=tuple(shards))
    foreign = describe_foreign_tensors(catalog) if architecture in (LLAMA, MISTRAL) else None
    if foreign is not None:
        raise InputError(f"{files.folder}: {foreign}")
    catalog = attach_scales(catalog, params.experts)
    dimensions = architecture.read_dimensions(catalog, params)
    rules = architecture.make_rules(dimensions)
    apart = take_apart(catalog, rules, dimensions)
    refuse_missing_shards(files.folder, apart, rules, dimensions)
    special = None if params.llama_4 is None else TOKEN_SETS["llama-4"].counted
    vocabulary = None if files.tokenizer is None else read_vocabulary(storage, files.tokenizer, special)
    facts = _make_facts(files.folder, params, dimensions, catalog, vocabulary, architecture)
    choice = choose_family(facts, family, instruct=instruct)
    optional = frozenset({architecture.output}) if choice.may_tie else frozenset()
    with _naming(files.folder):
        matches = match_rules(rules, architecture.ignored, apart, dimensions, optional, _ABSENCE)
    notes = (
        *files.notes,
        *catalog.notes,
        *note_buffers(catalog),
        *note_copies(catalog),
        *note_unlike_copies(matches),
        *note_scales(catalog),
        *choice.assumptions,
        *note_differences(params, dimensions, vocabulary),
        *note_params(params, choice),
    )
    return Checkpoint(files, params, catalog, architecture, dimensions, vocabulary, choice, matches, notes)


@contextlib.contextmanager
def _naming(folder: str) -> Iterator[None]:
    """Let findings about tensors begin with the folder: names of files are the same in many."""
    try:
        yield
    except InputError as error:
        lines = str(error).splitlines()
        raise InputError.of(
            line if line.startswith("…") else f"{folder}: {line}" for line in lines
        ) from error


def subject_of(choice: Choice) -> Subject:
    """Say what a model of a family is called."""
    return Subject(choice.family.name, choice.family.title, choice.instruct)


def _make_facts(
    folder: str,
    params: Params,
    dimensions: ModelDimensions,
    catalog: Catalog,
    vocabulary: Vocabulary | None,
    architecture: Architecture,
) -> Facts:
    return Facts(
        params=params,
        dimensions=dimensions,
        dtype=catalog.views(architecture.embedding)[0].dtype,
        tokenizer=None if vocabulary is None else vocabulary.kind,
        folder=folder,
        tied_storage=share_storage(catalog),
        tokenizer_size=None if vocabulary is None else vocabulary.size,
        tokenizer_path=None if vocabulary is None else vocabulary.path,
        has_statistics=any(name.endswith("expert_activation_DE") for name in catalog.names()),
    )


_ABSENCE = {OUTPUT: 'where the output is the embedding, let params.json say "weight_tying": true'}


def share_storage(catalog: Catalog) -> bool:
    """Whether embedding and output are one storage in every shard."""
    views = [catalog.views(name) for name in (EMBEDDING, OUTPUT)]
    return bool(views[1]) and all(is_same_storage(*pair) for pair in zip(*views, strict=False))


def is_same_storage(left: TensorView, right: TensorView) -> bool:
    """Whether two names stand for one view of one storage: proof that they are equal."""
    keys = ((view.region, view.dtype, view.offset, view.shape, view.strides) for view in (left, right))
    return next(keys) == next(keys)


def kv_pairs(checkpoint: Checkpoint, apart: int, copies: int) -> tuple[tuple[TensorView, TensorView], ...]:
    """Pairs of ranks that are equal where ``copies``, so far from each other, hold one key head.

    None but where each rank has one head: the 405B in 16 parts is so, and whatever was cut into
    more parts than it has key heads.
    """
    heads, rows = checkpoint.dimensions.kv_heads, checkpoint.dimensions.head_dim
    keys = [match.views for match in checkpoint.matches if match.cut.heads == "key"]
    if heads % (copies * apart) or any(view.shape[0] != rows for views in keys for view in views):
        return ()
    return tuple(
        (views[rank], views[rank + apart * copy])
        for views in keys
        for rank in range(0, heads, copies * apart)
        for copy in range(1, copies)
    )


_DOUBLED = 16


def decide(checkpoint: Checkpoint, answers: Answers | None = None) -> tuple[Decisions, tuple[str, ...]]:
    """Decide what only data can tell.

    With answers it is proved; without them what is published is assumed, unless
    the headers alone tell, and the notes say so.
    """
    tied, tied_notes = _decide_tied(checkpoint, answers)
    replication, kv_notes = decide_replication(checkpoint, answers)
    return Decisions(tied, replication), (*tied_notes, *kv_notes)


def _decide_tied(checkpoint: Checkpoint, answers: Answers | None) -> tuple[bool, tuple[str, ...]]:
    embedding, output = checkpoint.match(EMBEDDING), checkpoint.match(OUTPUT)
    if not checkpoint.choice.may_tie or embedding is None:
        return False, ()
    if output is None or share_storage(checkpoint.catalog):
        return True, ()
    same_cut = embedding.cut == output.cut
    if same_cut and any(map(is_disproved, embedding.views, output.views)):
        return False, (_UNTIED,)
    if answers is None:
        return True, ("embedding and output are taken as equal (tied), as published; convert compares them",)
    untied = Decisions(tied=False, kv_replication=1)
    targets = make_targets((embedding, output), checkpoint.dimensions.head_dim, untied)
    if answers.are_tied(*targets):
        return True, ()
    return False, (_UNTIED,)


_UNTIED = "embedding and output differ: lm_head.weight is kept, and the config is not tied"


def decide_replication(checkpoint: Checkpoint, answers: Answers | None) -> tuple[int, tuple[str, ...]]:
    """Decide how often key heads are stored; without answers what is published is assumed."""
    heads, times = checkpoint.dimensions.kv_heads, 1
    published = heads == _DOUBLED and bool(kv_pairs(checkpoint, 1, 2))
    for factor in _find_prime_factors(heads):
        while pairs := kv_pairs(checkpoint, times, factor):
            if any(is_disproved(*pair) for pair in pairs):
                break
            if answers is None:
                if published:
                    return 2, (
                        f"each key head is taken as stored twice ({heads // 2} are written), as published; convert compares them",
                    )
                return 1, ()
            if not answers.are_stored(times * factor, pairs):
                break
            times *= factor
    if times == 1:
        return 1, (f"all {heads} key heads are kept: they are not stored in pairs",) if published else ()
    often = "twice" if times == 2 else f"{times} times"
    return times, (f"each key head is stored {often}; {heads // times} are written",)


def _find_prime_factors(number: int) -> tuple[int, ...]:
    """Give the primes that divide a number, each once."""
    dividing = [factor for factor in range(2, number + 1) if number % factor == 0]
    return tuple(factor for factor in dividing if all(factor % less for less in dividing if less < factor))


def choose_dtype(checkpoint: Checkpoint, dtype: str) -> DType | None:
    """Give the type that all tensors are cast to; None where each keeps its own, which FP8 ones cannot."""
    if dtype != "auto":
        return DTYPES[dtype]
    if any(view.scale is not None for match in checkpoint.matches for view in match.views):
        raise InputError(
            f"{checkpoint.files.folder}: an FP8 checkpoint, whose down projections have a scale for each row and shard, as "
            "no format of Transformers and no other number of shards has them: its bytes cannot be moved as they are; "
            "convert with `dtype='bfloat16'`, which multiplies each value by its scale"
        )
    return None


def plan_conversion(
    checkpoint: Checkpoint, decisions: Decisions, dtype: str = "auto", max_shard_size: int | None = None
) -> Plan:
    """Plan a checkpoint's conversion into Transformers' chunks."""
    wanted = choose_dtype(checkpoint, dtype)
    targets = make_targets(checkpoint.matches, checkpoint.dimensions.head_dim, decisions, wanted)
    return make_plan(targets, decisions, max_shard_size)
