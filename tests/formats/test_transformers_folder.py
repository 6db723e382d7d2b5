"""Which files of a Transformers folder are what, and what is said of a folder that is not whole."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distconv.errors import InputError
from distconv.formats.meta.files import find_files
from distconv.formats.safetensors import weights
from distconv.formats.safetensors.folder import (
    SMALL_NAMES,
    TransformersFiles,
    find_transformers_files,
    is_transformers,
)
from distconv.formats.safetensors.index import read_index
from distconv.storage.local import LocalStorage
from tests.formats.folders import make_model, write_index

CONFIG, SINGLE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
BIN_INDEX = "pytorch_model.bin.index.json"
NEITHER = "m: neither model.safetensors.index.json nor model.safetensors nor pytorch_model.bin; "
"""How what is said of a folder without a model begins."""


def parts(count: int, form: str = "model-{:05d}-of-{:05d}.safetensors") -> list[str]:
    """Name the files of a model."""
    return [form.format(number, count) for number in range(1, count + 1)]


def bins(count: int) -> list[str]:
    """Name the files of a model that torch saved."""
    return parts(count, "pytorch_model-{:05d}-of-{:05d}.bin")


def make(
    folder: Path, *names: str, index: list[str] | None = None, bin_index: list[str] | None = None
) -> Path:
    """Make empty files, and indexes that name some."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for name, listed in ((INDEX, index), (BIN_INDEX, bin_index)):
        if listed is not None:
            write_index(folder / name, {f"tensor.{number}": file for number, file in enumerate(listed)})
    return folder


def find(path: Path) -> TransformersFiles:
    """Find the files of a folder, or of the model that a file is part of."""
    return find_transformers_files(LocalStorage(), str(path))


def names(found: TransformersFiles) -> list[str]:
    """Give the names of the weights, in order."""
    return [Path(path).name for path in found.weights]


def refused(path: Path) -> str:
    """Give the message with which a folder is refused."""
    with pytest.raises(InputError) as caught:
        find(path)
    return str(caught.value)


def test_everything_that_transformers_saves_is_found(tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path, max_shard_size="10KB")
    found = find(tmp_path)
    with_index = json.loads((tmp_path / INDEX).read_text())["weight_map"]
    assert set(names(found)) == set(with_index.values())
    assert found.index is not None
    assert found.index.files == with_index
    assert (found.folder, found.config) == (str(tmp_path), str(tmp_path / CONFIG))
    assert found.small == {"generation_config.json": str(tmp_path / "generation_config.json")}
    assert is_transformers(LocalStorage(), str(tmp_path))


def test_small_files_and_the_licence_are_found(tmp_path: Path) -> None:
    folder = make(tmp_path / "m", CONFIG, SINGLE, *SMALL_NAMES, "LICENSE.txt", "USE_POLICY.md", "README.md")
    found = find(folder)
    assert found.small == {name: str(folder / name) for name in SMALL_NAMES}
    assert [Path(path).name for path in found.legal] == ["LICENSE.txt", "USE_POLICY.md"]
    assert not found.notes


def test_a_folder_is_no_small_file(tmp_path: Path) -> None:
    make(tmp_path, CONFIG, SINGLE, "tokenizer.json/nothing")
    assert not find(tmp_path).small


@pytest.mark.parametrize("count", [2, 11])
@pytest.mark.parametrize("form", ["model-{:05d}-of-{:05d}.safetensors", "model-{}-of-{}.safetensors"])
def test_parts_are_in_the_order_of_their_numbers(tmp_path: Path, count: int, form: str) -> None:
    listed = parts(count, form)
    make(tmp_path, CONFIG, *listed)
    assert names(find(tmp_path)) == listed
    make(tmp_path, index=listed)
    assert names(find(tmp_path)) == listed


def test_an_index_may_name_files_of_any_names(tmp_path: Path) -> None:
    listed = [
        "ft-model-00001-of-00002.safetensors",
        "ft-model-00002-of-00002.safetensors",
        "head.safetensors",
    ]
    assert names(find(make(tmp_path, CONFIG, *listed, index=listed))) == listed


def test_parts_beside_something_else_that_an_index_names_come_first(tmp_path: Path) -> None:
    listed = ["head.safetensors", *parts(2)]
    assert names(find(make(tmp_path, CONFIG, *listed, index=listed))) == [*parts(2), "head.safetensors"]


@pytest.mark.parametrize(
    ("safe", "index"),
    [([SINGLE], None), (parts(2), None), (parts(2), parts(2))],
    ids=["single", "parts", "index"],
)
def test_safetensors_are_preferred_to_what_torch_saved_and_that_is_said(
    tmp_path: Path, safe: list[str], index: list[str] | None
) -> None:
    make(tmp_path, CONFIG, *safe, *bins(3), index=index, bin_index=bins(3))
    found = find(tmp_path)
    assert names(found) == safe
    (note,) = found.notes
    assert note == (
        f"{tmp_path}: {BIN_INDEX} and pytorch_model-*-of-00003.bin not read: {safe[0]} is preferred, as by Transformers"
    )


def test_what_is_not_preferred_is_read_where_it_is_given(tmp_path: Path) -> None:
    make(tmp_path, CONFIG, SINGLE, *bins(3), bin_index=bins(3))
    for given_name in [*bins(3), BIN_INDEX]:
        assert names(find(tmp_path / given_name)) == bins(3)


def test_the_index_of_a_variant_is_read_where_it_is_given(tmp_path: Path) -> None:
    listed = parts(2, "model.fp16-{:05d}-of-{:05d}.safetensors")
    make(tmp_path, CONFIG, *listed)
    write_index(tmp_path / "model.safetensors.index.fp16.json", dict(zip("ab", listed, strict=True)))
    assert names(find(tmp_path / "model.safetensors.index.fp16.json")) == listed


def test_a_relative_path_is_in_the_folder_where_one_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, CONFIG, SINGLE)
    monkeypatch.chdir(tmp_path)
    found = find_transformers_files(LocalStorage(), SINGLE)
    assert [Path(path) for path in found.weights] == [Path(SINGLE)]
    assert is_transformers(LocalStorage(), SINGLE)


def test_links_into_the_hubs_cache_are_followed(tmp_path: Path) -> None:
    make(tmp_path / "blobs", "a", "b")
    snapshot = tmp_path / "snapshots/main"
    snapshot.mkdir(parents=True)
    for name, blob in ((CONFIG, "a"), (SINGLE, "b")):
        (snapshot / name).symlink_to(f"../../blobs/{blob}")
    assert find(snapshot / SINGLE).weights == (str(snapshot / SINGLE),)
    assert is_transformers(LocalStorage(), str(snapshot))


def test_an_adapter_beside_the_model_is_not_used_and_that_is_said(tmp_path: Path) -> None:
    make(tmp_path, CONFIG, SINGLE, "adapter_config.json", "adapter_model.safetensors")
    assert "an adapter lies here and is not used" in find(tmp_path).notes[0]


@pytest.mark.parametrize(
    ("held", "words"),
    [
        (
            ["adapter_config.json", "adapter_model.safetensors"],
            NEITHER
            + "it holds a LoRA adapter without its model (adapter_config.json, adapter_model.safetensors); merge it into the model first",
        ),
        (
            ["adapter_config.json", CONFIG],
            NEITHER
            + "it holds a LoRA adapter without its model (adapter_config.json); merge it into the model first",
        ),
        (
            [CONFIG, "consolidated.00.pth"],
            NEITHER + "it holds consolidated.00.pth; if one of these is the model, give the file's path",
        ),
        (
            [CONFIG, "model.fp16.safetensors"],
            NEITHER + "it holds model.fp16.safetensors; if one of these is the model, give the file's path",
        ),
        (
            [CONFIG, "tf_model.h5"],
            NEITHER + "it holds config.json, tf_model.h5",
        ),
        (
            [CONFIG, "fp8_scales_0.pt", SINGLE],
            (
                "m/fp8_scales_0.pt: the scales of one of Meta's FP8 shards, and there are none; "
                "download consolidated.*.pth and params.json, or take the scales away"
            ),
        ),
        (
            [],
            NEITHER + "the folder is empty",
        ),
    ],
)
def test_a_folder_without_a_model_is_refused_with_what_it_holds(
    tmp_path: Path, held: list[str], words: str
) -> None:
    assert refused(make(tmp_path, *held)).replace(str(tmp_path), "m") == words


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    assert "no such file or folder" in refused(tmp_path / "absent")
    assert not is_transformers(LocalStorage(), str(tmp_path / "absent"))


def test_all_that_is_missing_is_said_at_once(tmp_path: Path) -> None:
    listed = [*parts(3), *parts(4)]
    lines = refused(make(tmp_path, *listed[1:3], index=listed)).splitlines()
    absent, totals, config = lines
    assert absent == (
        f"{tmp_path / INDEX}: names {', '.join([parts(3)[0], *parts(4)])}: not in {tmp_path}; download the missing files"
    )
    assert totals == (
        f"{tmp_path / INDEX}: names both model-*-of-00003.safetensors and model-*-of-00004.safetensors; "
        "expected files of one total: download all of them again"
    )
    assert config.startswith(
        f"{tmp_path}: no config.json beside the weights; copy it from the model that this one is"
    )


def test_a_missing_part_is_named_without_an_index_too(tmp_path: Path) -> None:
    assert "parts 01, 03 of 03; expected all of model-*-of-00003.safetensors" in refused(
        make(tmp_path, CONFIG, parts(3)[0], parts(3)[2])
    )


def test_an_index_that_names_some_of_the_parts_is_refused(tmp_path: Path) -> None:
    message = refused(make(tmp_path, CONFIG, *parts(3), index=parts(3)[:2]))
    assert f"{tmp_path / INDEX}: names 2 of the files that belong together: " in message
    assert "expected all of model-*-of-00003.safetensors" in message


@pytest.mark.parametrize(
    ("held", "index", "both"),
    [
        (
            [*parts(2), *parts(3)],
            None,
            "model-*-of-00002.safetensors and model-*-of-00003.safetensors",
        ),
        (
            [*parts(2), *parts(3)],
            parts(2),
            "model.safetensors.index.json and model-*-of-00003.safetensors",
        ),
        (
            [SINGLE, *parts(2)],
            parts(2),
            "model.safetensors.index.json and model.safetensors",
        ),
        (
            [SINGLE, *parts(2)],
            None,
            "model-*-of-00002.safetensors and model.safetensors",
        ),
    ],
)
def test_several_whole_models_are_refused_and_each_is_read_where_it_is_given(
    tmp_path: Path, held: list[str], index: list[str] | None, both: str
) -> None:
    make(tmp_path, CONFIG, *held, index=index)
    assert refused(tmp_path) == (
        f"{tmp_path}: both {both}: several whole models, or one whose files were saved in two numbers; "
        "give the path of the one to convert: of its index or of any of its files"
    )
    for files in ([SINGLE], parts(2), parts(3)):
        if set(files) <= set(held):
            assert names(find(tmp_path / files[0])) == files


def test_a_single_file_with_an_index_is_one_model(tmp_path: Path) -> None:
    assert names(find(make(tmp_path, CONFIG, SINGLE, index=[SINGLE]))) == [SINGLE]


def test_more_files_than_any_model_has_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "_MOST_FILES", 2)
    assert names(find(make(tmp_path / "two", CONFIG, *parts(2)))) == parts(2)
    assert "3 files of weights, expected at most 2" in refused(make(tmp_path / "three", CONFIG, *parts(3)))


@pytest.mark.parametrize(
    "file",
    [
        "../model.safetensors",
        "/etc/passwd",
        "sub/model.safetensors",
        "a\\b",
        "",
        "a\nb",
        "é",
        "a" * 256,
        1,
        None,
        ["a"],
    ],
)
def test_an_index_leads_nowhere_else(tmp_path: Path, file: object) -> None:
    make(tmp_path, CONFIG, SINGLE)
    write_index(tmp_path / INDEX, {"good": SINGLE, "bad": file})
    shown = ascii(file[:80]) if isinstance(file, str) else f"a {type(file).__name__}"
    assert refused(tmp_path) == f"{tmp_path / INDEX}: bad is in {shown}, expected a file in this folder"


def test_an_index_names_files_as_long_as_names_may_be(tmp_path: Path) -> None:
    make(tmp_path, CONFIG, SINGLE, index=["a" * 255])
    assert f"names {'a' * 255}: not in {tmp_path}" in refused(tmp_path / INDEX)


@pytest.mark.parametrize("file", [".", "..", CONFIG + ".x", "folder"])
def test_what_an_index_names_is_a_file(tmp_path: Path, file: str) -> None:
    make(tmp_path, CONFIG, SINGLE, "folder/x", index=[SINGLE, file])
    assert f"names {file}: not in {tmp_path}" in refused(tmp_path)


def test_a_few_of_many_wrong_names_are_shown(tmp_path: Path) -> None:
    make(tmp_path, CONFIG, SINGLE)
    write_index(tmp_path / INDEX, {f"{'x' * 1000}.{number}": f"../{number}" for number in range(999)})
    message = refused(tmp_path)
    assert message.endswith(f"\n{tmp_path / INDEX}: and 995 more of these")
    assert len(message) < 2000
    make(tmp_path, index=[f"{number}.safetensors" for number in range(999)])
    assert ", 104.safetensors and 991 more: not in" in refused(tmp_path / INDEX)
    make(tmp_path, index=parts(8))
    assert refused(tmp_path / INDEX) == (
        f"{tmp_path / INDEX}: names {', '.join(parts(8))}: not in {tmp_path}; download the missing files"
    )
    write_index(tmp_path / INDEX, {f"{number}": f"../{number}" for number in range(4)})
    assert refused(tmp_path).splitlines() == [
        f"{tmp_path / INDEX}: {number} is in '../{number}', expected a file in this folder"
        for number in range(4)
    ]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not JSON (Expecting value: line 1 column 1 (char 0)); it is an empty file"),
        (b"{", "not JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1))"),
        (
            b"\xff\xfe",
            "not JSON (UTF-16, which other programs do not read; save it as UTF-8 without a byte order mark); it is unknown content (first bytes ff fe)",
        ),
        (b"[" * 100_000, "not JSON (nested too deeply); it is JSON text"),
        (
            b"<html></html>",
            "not JSON (Expecting value: line 1 column 1 (char 0)); it is an HTML or XML page, as an expired download link gives",
        ),
        (b"[]", "list, expected a JSON object"),
        (b"{}", "no weight_map, expected an object with a file's name by each tensor's"),
        (b'{"weight_map": {}}', "no weight_map, expected an object with a file's name by each tensor's"),
        (b'{"weight_map": ["a"]}', "no weight_map, expected an object with a file's name by each tensor's"),
        (b'{"weight_map": {"a": "x", "a": "y"}}', "not JSON ('a' is there twice, with different values)"),
        (b'{"weight_map": ' + b" " * (8 << 20) + b"{}}", "8,388,626 bytes, expected at most 8,388,608"),
    ],
)
def test_a_damaged_index_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    make(tmp_path, CONFIG, SINGLE)
    (tmp_path / INDEX).write_bytes(content)
    assert refused(tmp_path) == f"{tmp_path / INDEX}: {words}"


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.floats()
    | st.integers()
    | st.text(max_size=8)
    | st.sampled_from([SINGLE, "..", "/a"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=4) | st.just("weight_map"), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(value=VALUES | st.fixed_dictionaries({"weight_map": VALUES}), cut=st.integers(0, 40))
def test_any_index_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, value: object, cut: int
) -> None:
    path = tmp_path_factory.mktemp("any") / INDEX
    content = json.dumps(value).encode()
    path.write_bytes(content[: len(content) - cut] if cut % 4 == 0 else content)
    try:
        found = read_index(LocalStorage(), str(path))
    except InputError as error:
        message = str(error)
    else:
        message = str(path)
        assert found.files == json.loads(content)["weight_map"]
        assert not any("/" in name for name in found.file_names())
    assert message.startswith(str(path))


FOLDERS = [
    ([CONFIG, SINGLE], True),
    ([CONFIG, *parts(2)], True),
    ([CONFIG, "pytorch_model.bin"], True),
    ([CONFIG, INDEX], True),
    ([CONFIG, BIN_INDEX], True),
    ([CONFIG, SINGLE, "optimizer.pt", "scheduler.pt", "training_args.bin"], True),
    ([SINGLE], False),
    ([CONFIG], False),
    ([CONFIG, SINGLE, "runs/x", "consolidated.00"], True),
    ([CONFIG, SINGLE, "params.json"], False),
    ([CONFIG, SINGLE, "consolidated.00.pth"], False),
    ([CONFIG, SINGLE, "original/consolidated.00.pth", "original/params.json"], False),
    ([CONFIG, SINGLE, "original/consolidated.00/consolidated-00001-of-00001.pth"], False),
    ([CONFIG, "consolidated.00.pth"], False),
    ([CONFIG, "model-00001-of-00002.bin", "model-00002-of-00002.bin"], False),
]


@pytest.mark.parametrize(("held", "expected"), FOLDERS)
def test_the_format_of_a_folder_is_told_by_its_names(
    tmp_path: Path, held: list[str], *, expected: bool
) -> None:
    assert is_transformers(LocalStorage(), str(make(tmp_path, *held))) is expected


@pytest.mark.parametrize(("held", "expected"), FOLDERS)
def test_no_folder_is_of_both_formats(tmp_path: Path, held: list[str], *, expected: bool) -> None:
    try:
        find_files(LocalStorage(), str(make(tmp_path, *held)))
    except InputError:
        return
    assert not expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [(SINGLE, True), (parts(2)[0], True), (INDEX, True), ("consolidated.00.pth", False), (CONFIG, False)],
)
def test_a_file_is_of_the_format_that_its_name_and_its_folder_tell(
    tmp_path: Path, name: str, *, expected: bool
) -> None:
    make(tmp_path, CONFIG, SINGLE, *parts(2), INDEX, "consolidated.00.pth")
    assert is_transformers(LocalStorage(), str(tmp_path / name)) is expected
    (tmp_path / CONFIG).unlink()
    assert not is_transformers(LocalStorage(), str(tmp_path / name))
