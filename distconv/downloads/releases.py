"""What Meta's links serve: folders and file names of every release that can be converted.

The names follow Meta's ``download.sh`` of Llama 2, Code Llama, Llama 3 and Llama 3.1, and the
list of llama-models 0.3.0 for what came later. Where two of these disagree about a folder's
name on the server, both are tried.
"""

from dataclasses import dataclass

from distconv.errors import UsageError
from distconv.formats.meta.scales import scales_name

LEGAL = ("LICENSE", "USE_POLICY.md", "USE_POLICY")
"""Beside the models' folders; a release has some of them."""
CHECKLIST = "checklist.chk"
TOKENIZER_CHECKLIST = "tokenizer_checklist.chk"
PARAMS = "params.json"
TOKENIZER = "tokenizer.model"


@dataclass(frozen=True, slots=True)
class Release:
    """One model as Meta serves it."""

    name: str
    short: str | None
    """How Meta's own script called it, where that is clear without the generation."""
    folder: str
    """The folder that it gets here."""
    remotes: tuple[str, ...]
    """The folder's names on the server, the likeliest first."""
    shards: int
    shared_tokenizer: bool = False
    """Whether the tokenizer lies beside the models' folders (Llama 2)."""
    fp8: bool = False
    """Whether each shard has a file with the scales of its FP8 tensors."""

    @property
    def weight_names(self) -> tuple[str, ...]:
        """The files that hold the weights: shards, and their scales."""
        shards = [f"consolidated.{number:02}.pth" for number in range(self.shards)]
        return (*shards, *(scales_name(number) for number in range(self.shards if self.fp8 else 0)))


def _llama_2() -> list[Release]:
    shards = {"7b": 1, "13b": 2, "70b": 8}
    return [
        Release(
            f"Llama-2-{size}{kind}", f"{size.upper()}{kind}", folder := f"llama-2-{size}{kind}",
            (folder,), count, shared_tokenizer=True,
        )
        for kind in ("", "-chat")
        for size, count in shards.items()
    ]  # fmt: skip


def _code_llama() -> list[Release]:
    shards = {"7b": 1, "13b": 2, "34b": 4, "70b": 8}
    return [
        # "7b" and the like are too near to Llama 2's "7B" to be told from it.
        Release(name := f"CodeLlama-{size}{kind}", f"{size}{kind}" if kind else None, name, (name,), count)
        for kind in ("", "-Python", "-Instruct")
        for size, count in shards.items()
    ]


def _llama_3() -> list[Release]:
    kinds = {"": "pre_trained", "-Instruct": "instruction_tuned"}
    return [
        Release(
            name := f"Meta-Llama-3-{size}{kind}", None, name,
            (f"{size.lower()}_{served}", f"Llama-3-{size}{kind}", name), count,
        )
        for size, count in {"8B": 1, "70B": 8}.items()
        for kind, served in kinds.items()
    ]  # fmt: skip


def _newer(name: str, shards: int, *others: str) -> Release:
    return Release(name, None, name, (name, *others), shards)


def _fp8(name: str, *remotes: str) -> Release:
    return Release(f"{name}-FP8", None, f"{name}-FP8", remotes, 8, fp8=True)


def _llama_3_1() -> list[Release]:
    shards = {"8B": 1, "70B": 8, "405B-MP8": 8, "405B-MP16": 16}
    found = []
    for size, count in shards.items():
        number, _, parts = size.partition("-")
        for kind in ("", "-Instruct"):
            name = f"Llama-3.1-{number}{kind}{'-' + parts if parts else ''}"
            found.append(_newer(name, count, f"Meta-{name}"))
    # What is served under the model's plain name is not what it was trained in.
    found += [_fp8(name, name, f"Meta-{name}") for name in ("Llama-3.1-405B", "Llama-3.1-405B-Instruct")]
    return found


def _llama_3_2() -> list[Release]:
    shards = {"1B": 1, "3B": 1, "11B-Vision": 1, "90B-Vision": 8}
    return [
        _newer(f"Llama-3.2-{size}{kind}", count)
        for size, count in shards.items()
        for kind in ("", "-Instruct")
    ]


def _llama_4() -> list[Release]:
    models = ("Llama-4-Scout-17B-16E", "Llama-4-Maverick-17B-128E")
    found = [_newer(f"{name}{kind}", 8) for name in models for kind in ("", "-Instruct")]
    name = f"{models[1]}-Instruct"
    return [*found, _fp8(name, f"{name}-FP8")]


RELEASES = (
    *_llama_2(),
    *_code_llama(),
    *_llama_3(),
    *_llama_3_1(),
    *_llama_3_2(),
    _newer("Llama-3.3-70B-Instruct", 8),
    *_llama_4(),
    Release("Llama-Guard-2-8B", None, "Llama-Guard-2-8B", ("llama-guard-2",), 1),
    _newer("Llama-Guard-3-8B", 1, "Meta-Llama-Guard-3-8B"),
    _newer("Llama-Guard-3-1B", 1),
    _newer("Llama-Guard-3-11B-Vision", 1),
    _newer("Llama-Guard-4-12B", 1),
)


def find_release(name: str) -> Release:
    """Find a release by any of its names, in either case; UsageError where none or several have it."""
    wanted = name.strip().lower().removeprefix("meta-")
    found = [release for release in RELEASES if wanted in _names(release)]
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f"model {name}: write one of {', '.join(release.name for release in found)}")
    near = [release.name for release in RELEASES if wanted and wanted in release.name.lower()]
    raise UsageError(f"model {name}: expected one of {', '.join(near or map(_shown, RELEASES))}")


def _names(release: Release) -> set[str]:
    # 405B has a name of its own for each of its forms: who gives none is asked which is meant.
    remotes = () if release.fp8 else release.remotes
    names = {release.name, release.folder, *remotes, release.short or release.name}
    return {name.lower().removeprefix("meta-") for name in names}


def _shown(release: Release) -> str:
    return f"{release.short} ({release.name})" if release.short else release.name
