"""A folder for Meta's code is whole or it is not, and what is damaged is named."""

import hashlib
import json
import os
import random
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from xxhash import xxh3_128

import distconv
from distconv.errors import OutputError
from distconv.moving.progress import SilentProgress
from distconv.output.findings import Depth
from distconv.output.proof import prove
from distconv.storage.local import LocalStorage
from tests.checkpoints import Spec, Tensors, rezip
from tests.extent import share
from tests.faults import digest_folder
from tests.meta_folders import data_of, read_ranks, write_meta_folder, write_records, write_shards
from tests.test_malformed_output import look, mutations, write_signed
from tests.test_whole import flip, put, sign

Write = Callable[[Spec], Path]
Damage = Callable[[Path], object]
SPEC = Spec("llama-3", heads=8, kv_heads=4, shards=2)
SHARD = "consolidated.01.pth"
PLAIN_FOLDERS = [
    SPEC,
    Spec("llama-3", shards=1),
    Spec("llama-2", heads=8, shards=4),
    Spec("code-llama", heads=8, kv_heads=4, shards=2),
    Spec("llama-3.2", heads=8, kv_heads=4, shards=1, tied=True),
    Spec("llama-3.1", heads=8, kv_heads=2, shards=2, dtype=torch.float16),
    Spec("llama-3", heads=8, kv_heads=8, doubled_kv=True, shards=8),
]


@pytest.fixture(scope="module")
def model(checkpoint: Write, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a finished folder of two ranks."""
    return write_meta_folder(tmp_path_factory.mktemp("meta") / "out", checkpoint(SPEC))


@pytest.fixture
def output(model: Path, tmp_path: Path) -> Path:
    """Give a copy of it, to be damaged."""
    return shutil.copytree(model, tmp_path / "out")


def find(output: Path, depth: Depth = Depth.MODEL) -> list[str]:
    """Give what is found, a folder without a model's names included."""
    try:
        return [
            finding.words for finding in prove(LocalStorage(), str(output), depth, SilentProgress()).findings
        ]
    except OutputError as error:
        return [str(error)]


@pytest.mark.parametrize("spec", PLAIN_FOLDERS, ids=str)
def test_a_finished_folder_is_whole_at_every_depth_with_a_receipt_and_without(
    checkpoint: Write, tmp_path: Path, spec: Spec
) -> None:
    output = write_meta_folder(tmp_path / "out", checkpoint(spec))
    assert [find(output, depth) for depth in Depth] == [[], [], []]
    report = distconv.verify(output)
    assert report.ok
    assert report.data_proved
    assert report.tensors == sum(len(rank) for rank in read_ranks(checkpoint(spec)))
    (output / "distconv.json").unlink()
    assert [find(output, depth) for depth in Depth] == [[], [], []]
    report = distconv.verify(output)
    assert report.ok
    assert not report.data_proved
    assert any("CRC32s of its own records" in note for note in report.notes)


def test_two_names_of_one_storage_are_one_record(checkpoint: Write, tmp_path: Path) -> None:
    (rank,) = read_ranks(checkpoint(Spec("llama-3.2", heads=8, kv_heads=4, shards=1)))
    rank["output.weight"] = rank["tok_embeddings.weight"].detach()
    output = tmp_path / "out"
    write_shards(output, [rank])
    shutil.copy(checkpoint(SPEC) / "params.json", output)
    write_records(output, [rank])
    assert find(output, Depth.DATA) == []
    flip(output / "consolidated.00.pth", place_of(output / "consolidated.00.pth", rank["output.weight"]))
    (words,) = find(output, Depth.DATA)
    assert "the data of tok_embeddings.weight differs" in words
    (output / "distconv.json").unlink()
    (words,) = find(output, Depth.DATA)
    assert "the data of tok_embeddings.weight, output.weight differs from its CRC32" in words


def place_of(path: Path, tensor: torch.Tensor) -> int:
    """Give the offset of a tensor's data in a file that holds it once."""
    content, data = path.read_bytes(), data_of(tensor)
    assert content.count(data) == 1
    return content.index(data)


def record(name: str, shift: int) -> Damage:
    """Flip a bit some bytes behind the beginning of a record's local header."""

    def damage(folder: Path) -> None:
        with zipfile.ZipFile(folder / SHARD) as archive:
            info = archive.getinfo(f"consolidated.01/{name}")
        flip(folder / SHARD, info.header_offset + shift)

    return damage


def in_a_record(folder: Path) -> None:
    """Flip a bit in the middle of the largest tensor."""
    with zipfile.ZipFile(folder / SHARD) as archive:
        info = max(archive.infolist(), key=lambda info: info.file_size)
    flip(folder / SHARD, info.header_offset + info.file_size // 2)


def save_again(change: Callable[[Tensors], object], **options: object) -> Damage:
    """Save a shard again as something else."""
    return lambda folder: torch.save(change(torch.load(folder / SHARD)), folder / SHARD, **options)  # type: ignore[arg-type]


def swap(folder: Path) -> None:
    """Give two shards each other's name."""
    (folder / SHARD).rename(folder / "away")
    (folder / "consolidated.00.pth").rename(folder / SHARD)
    (folder / "away").rename(folder / "consolidated.00.pth")


def edit(name: str, **changes: object) -> Damage:
    """Change keys of a JSON file."""
    return lambda folder: (folder / name).write_text(
        json.dumps(json.loads((folder / name).read_text()) | changes)
    )


def relist(folder: Path) -> None:
    """Let the checklist say something else of a shard, and the receipt that this is how it is."""
    text = (folder / "checklist.chk").read_text()
    (folder / "checklist.chk").write_text(text.replace(text[text.index(SHARD) - 34 :][:32], "0" * 32))
    digest = hashlib.sha256((folder / "checklist.chk").read_bytes()).hexdigest()
    files = json.loads((folder / "distconv.json").read_text())["files"]
    sign(folder, files=files | {"checklist.chk": digest})


STRUCTURE, DATA = Depth.STRUCTURE, Depth.DATA
DAMAGES: dict[str, tuple[Damage, str, Depth]] = {
    "a flipped bit in a record": (in_a_record, SHARD, DATA),
    "a flipped bit in a local header": (record("data/3", 10), SHARD, STRUCTURE),
    "a flipped bit in a signature": (record("data/3", 0), SHARD, STRUCTURE),
    "a flipped bit in the pickle": (record("data.pkl", 100), SHARD, STRUCTURE),
    "a flipped bit in the serialization id": (record(".data/serialization_id", 100), SHARD, STRUCTURE),
    "a flipped bit in the directory": (lambda folder: flip(folder / SHARD, -300), SHARD, STRUCTURE),
    "a flipped bit in the last record": (lambda folder: flip(folder / SHARD, -1), SHARD, STRUCTURE),
    "a shard cut short": (lambda folder: os.truncate(folder / SHARD, 9_999), SHARD, STRUCTURE),
    "a shard without its last byte": (
        lambda folder: os.truncate(folder / SHARD, (folder / SHARD).stat().st_size - 1), SHARD, STRUCTURE,
    ),
    "an empty shard": (lambda folder: os.truncate(folder / SHARD, 0), SHARD, STRUCTURE),
    "a shard with more behind it": (
        lambda folder: os.truncate(folder / SHARD, (folder / SHARD).stat().st_size + 9), SHARD, STRUCTURE,
    ),
    "a missing shard": (lambda folder: (folder / SHARD).unlink(), SHARD, STRUCTURE),
    "two shards in each other's place": (swap, SHARD, STRUCTURE),
    "a shard too many": (
        lambda folder: shutil.copy(folder / SHARD, folder / "consolidated.02.pth"), "consolidated.02.pth", STRUCTURE,
    ),
    "a shard of another model": (put("consolidated.08.pth"), "consolidated.08.pth", STRUCTURE),
    "weights of another name": (put("other.pth"), "other.pth", STRUCTURE),
    "weights of another format": (put("model.safetensors"), "model.safetensors", STRUCTURE),
    "a folder that the loader takes for a shard": (
        lambda folder: (folder / "other.pth").mkdir(), "other.pth", STRUCTURE,
    ),
    "a config": (put("config.json", b"[]"), "config.json", STRUCTURE),
    "another tokenizer": (put("spiece.model", b"pieces"), "spiece.model", STRUCTURE),
    "a changed tokenizer": (lambda folder: flip(folder / "tokenizer.model", 3), "tokenizer.model", STRUCTURE),
    "a missing tokenizer": (lambda folder: (folder / "tokenizer.model").unlink(), "tokenizer.model", STRUCTURE),
    "another params.json": (edit("params.json", n_layers=3), "params.json", STRUCTURE),
    "a missing params.json": (lambda folder: (folder / "params.json").unlink(), "params.json", STRUCTURE),
    "a changed checklist": (lambda folder: flip(folder / "checklist.chk", 3), "checklist.chk", STRUCTURE),
    "a checklist with a wrong line": (relist, SHARD, DATA),
    "a damaged receipt": (edit("distconv.json", sha256="0" * 64), "distconv.json", STRUCTURE),
    "a conversion that is not finished": (put(".distconv.journal"), "not finished", STRUCTURE),
    "a shard that was zipped again": (lambda folder: rezip(folder / SHARD), SHARD, STRUCTURE),
    "a compressed shard": (
        lambda folder: rezip(folder / SHARD, compression=zipfile.ZIP_DEFLATED), SHARD, STRUCTURE,
    ),
    "a shard in torch's old format": (
        save_again(lambda rank: rank, _use_new_zipfile_serialization=False), SHARD, STRUCTURE,
    ),
    "a shard with a dict around it": (save_again(lambda rank: {"model": rank}), SHARD, STRUCTURE),
    "a shard in another order": (save_again(lambda rank: dict(sorted(rank.items()))), SHARD, DATA),
    "tensors that lie in columns": (
        save_again(lambda rank: {name: part.t().contiguous().t() for name, part in rank.items()}), SHARD, STRUCTURE,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "name", "depth"), DAMAGES.values(), ids=DAMAGES)
def test_what_is_damaged_is_found_as_soon_as_it_shows_and_named(
    output: Path, damage: Damage, name: str, depth: Depth
) -> None:
    damage(output)
    assert find(output, Depth(depth - 1)) == [] if depth > Depth.STRUCTURE else True
    for closer in range(depth, Depth.MODEL + 1):
        assert any(name in words for words in find(output, Depth(closer)))


@pytest.mark.parametrize(
    "name",
    ["a shard that was zipped again", "a shard with a dict around it", "two shards in each other's place"],
)
def test_an_archive_that_torch_loads_but_no_conversion_wrote_is_called_so(output: Path, name: str) -> None:
    DAMAGES[name][0](output)
    assert torch.load(output / SHARD)
    assert any(
        f"{SHARD}: its archive is not in the one form that its tensors have" in words
        for words in find(output)
    )


@settings(max_examples=share(60), database=None)
@given(data=st.data())
def test_no_byte_of_a_shard_can_change_unseen(model: Path, data: st.DataObject) -> None:
    path = model / SHARD
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        edges = [info.header_offset for info in archive.infolist()] + [archive.start_dir]
    near = st.builds(lambda edge, shift: edge + shift, st.sampled_from(edges), st.integers(0, 200))
    place = data.draw(st.integers(0, len(content) - 1) | near)
    changed = bytearray(content)
    changed[place % len(content)] ^= data.draw(st.integers(1, 255))
    try:
        path.write_bytes(changed)
        assert any(SHARD in words for words in find(model, Depth.DATA))
    finally:
        path.write_bytes(content)


def test_without_a_receipt_records_and_checklist_tell_of_damaged_data(output: Path) -> None:
    (output / "distconv.json").unlink()
    in_a_record(output)
    assert find(output, Depth.STRUCTURE) == []
    (words,) = find(output, Depth.DATA)
    assert "differs from its CRC32 in the archive's directory" in words
    (output / "checklist.chk").write_text(f"{'0' * 32}  consolidated.00.pth\n{'0' * 32}  gone.txt\n")
    found = find(output, Depth.DATA)
    assert any("consolidated.00.pth: MD5" in words for words in found)
    assert any("gone.txt: missing, though checklist.chk lists it" in words for words in found)


def remade(change: Callable[[list[Tensors]], object]) -> Damage:
    """Change ranks, and write them and their records again, so that nothing is damaged."""

    def damage(folder: Path) -> None:
        ranks = read_ranks(folder)
        change(ranks)
        write_shards(folder, ranks)
        write_records(folder, ranks)

    return damage


def rewritten(**changes: object) -> Damage:
    """Change params.json, and write the records again."""

    def damage(folder: Path) -> None:
        edit("params.json", **changes)(folder)
        write_records(folder, read_ranks(folder))

    return damage


def shift_rows(ranks: list[Tensors], name: str = "layers.0.feed_forward.w1.weight") -> None:
    """Cut a tensor unevenly."""
    whole = torch.cat([rank[name] for rank in ranks])
    ranks[0][name], ranks[1][name] = whole[:10].clone(), whole[10:].clone()


MISFITS: dict[str, tuple[Damage, str]] = {
    "a tensor too few": (
        remade(lambda ranks: [rank.pop("output.weight") for rank in ranks]), r"output\.weight: missing in",
    ),
    "a tensor too few in one rank": (
        remade(lambda ranks: ranks[1].pop("norm.weight")), r"norm\.weight: missing in consolidated\.01\.pth",
    ),
    "frequencies, which the strict loader does not take": (
        remade(lambda ranks: [rank.update({"rope.freqs": torch.ones(4)}) for rank in ranks]), r"rope\.freqs is no tensor",
    ),
    "half a tensor": (
        remade(lambda ranks: ranks[0].update({"output.weight": ranks[0]["output.weight"][:8].clone()})),
        r"output\.weight in consolidated\.00\.pth: shape",
    ),
    "parts of different sizes": (remade(shift_rows), r"w1\.weight: shape .*; Meta's code takes equal parts only"),
    "more layers": (rewritten(n_layers=3), r"params\.json: says 3 layers, the shards hold 2"),
    "other key heads": (rewritten(n_kv_heads=8), r"attention\.wk\.weight in consolidated\.00\.pth: shape"),
    "another feed-forward size": (rewritten(multiple_of=1024), r"params\.json: multiple_of .* give .* 1,024"),
    "another vocabulary": (rewritten(vocab_size=7), r"params\.json: vocab_size 7"),
    "nonsense": (rewritten(dim="wide"), r"params\.json: .*dim"),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "words"), MISFITS.values(), ids=MISFITS)
def test_what_metas_model_does_not_take_is_found_though_nothing_is_damaged(
    output: Path, damage: Damage, words: str
) -> None:
    damage(output)
    assert find(output, Depth.DATA) == []
    assert any(re.search(words, found) for found in find(output, Depth.MODEL))


def test_who_verifies_a_download_of_metas_is_told_of_check(checkpoint: Write) -> None:
    """Its tensors may be parts of records, of which no CRC32 tells whether they are whole."""
    source = checkpoint(Spec("llama-2", shards=2))
    report = distconv.verify(source)
    assert report.differences == ()
    assert any(
        f"whether a download of Meta's is whole `distconv check {source}` tells" in note
        for note in report.notes
    )


VIEWS = [Spec("llama-3", layout=layout) for layout in ("packed", "transposed", "apart")] + [
    Spec("llama-3", legacy=True),
    Spec("llama-2", shards=2),
    Spec("llama-2", shards=2, layout="transposed"),
]


def list_data(folder: Path) -> list[bytes]:
    """Give the data of all tensors that torch loads of a folder's shards, in an order that the files do not make."""
    ranks = [torch.load(path) for path in sorted(folder.glob("*.pth"))]
    return [data_of(rank[name]) for rank in ranks for name in sorted(rank) if "rope" not in name]


@pytest.mark.parametrize("spec", VIEWS, ids=lambda spec: f"{spec.family}-{spec.layout}-{spec.legacy}")
def test_what_metas_code_loads_is_whole_wherever_in_its_records_it_lies(
    checkpoint: Write, tmp_path: Path, spec: Spec
) -> None:
    source = shutil.copytree(checkpoint(spec), tmp_path / "in")
    assert [find(source, depth) for depth in Depth] == [[], [], []]
    assert any("no CRC32 is about them alone" in note for note in distconv.verify(source).notes)
    proof = prove(LocalStorage(), str(source), Depth.DATA, SilentProgress(), digests=True)
    digests = {place: seen.digest for place, seen in (proof.data.tensors or {}).items()}
    expected = [xxh3_128(data).hexdigest() for data in list_data(source)]
    assert [digests[place] for place in sorted(digests)] == expected


@pytest.mark.parametrize("spec", VIEWS[:4], ids=lambda spec: f"{spec.family}-{spec.layout}-{spec.legacy}")
def test_values_and_differences_of_parts_of_records_are_found(
    checkpoint: Write, tmp_path: Path, spec: Spec
) -> None:
    source = shutil.copytree(checkpoint(spec), tmp_path / "in")
    (source / "checklist.chk").unlink()
    assert distconv.verify(source, against=checkpoint(spec)).differences == ()
    path = source / "consolidated.00.pth"
    rank = torch.load(path)
    rank["layers.1.attention.wo.weight"][3, 5] = float("nan")
    torch.save(rank, path, _use_new_zipfile_serialization=not spec.legacy)
    (words,) = distconv.verify(source).differences
    assert words == f"layers.1.attention.wo.weight in {path}: 1 NaN of 4,096 values"
    found = distconv.verify(source, against=checkpoint(spec)).differences
    assert any(
        "layers.1.attention.wo.weight" in words and "row 3, column 5 differs" in words for words in found
    )


def test_a_checklist_is_held_against_shards_whose_tensors_lie_across_each_other(
    checkpoint: Write, tmp_path: Path
) -> None:
    for layout in ("transposed", "apart"):
        source = shutil.copytree(checkpoint(Spec("llama-3", layout=layout)), tmp_path / layout)
        listed = (source / "checklist.chk").read_text()
        digest = hashlib.md5((source / "consolidated.00.pth").read_bytes()).hexdigest()
        assert digest in listed
        assert find(source, Depth.DATA) == []
        (source / "checklist.chk").write_text(listed.replace(digest, "0" * 32))
        assert find(source, Depth.DATA) == [
            f"{source / 'consolidated.00.pth'}: MD5 {digest}, checklist.chk gives {'0' * 32}"
        ]


@pytest.mark.parametrize("strides", [(0, 0), (0, 1), (1, 1)])
def test_a_small_file_stands_for_no_more_data_than_it_has(
    checkpoint: Write, tmp_path: Path, strides: tuple[int, int]
) -> None:
    source = shutil.copytree(checkpoint(Spec("llama-3")), tmp_path / "in")
    rank = {"tok_embeddings.weight": torch.ones(1 << 17).as_strided((1 << 16, 1 << 16), strides)}
    torch.save(rank, source / "consolidated.00.pth")
    (words, *_others) = find(source)
    assert re.search(
        r"17,179,869,184 bytes of tensors in a file of [\d,]+: several share parts of records", words
    )


def test_heads_that_lie_across_ranks_are_no_model_of_metas(checkpoint: Write, tmp_path: Path) -> None:
    output = write_meta_folder(tmp_path / "out", checkpoint(Spec("llama-3", heads=8, kv_heads=1, shards=2)))
    assert find(output, Depth.DATA) == []
    (words,) = find(output, Depth.MODEL)
    assert "8 heads and 1 key heads; Meta's code cannot divide them among 2 shards" in words


def test_a_folder_with_shards_and_without_params_is_not_finished(output: Path) -> None:
    (output / "distconv.json").unlink()
    (output / "params.json").unlink()
    with pytest.raises(OutputError, match=r"no params\.json; the conversion is not finished"):
        distconv.verify(output)


def test_shards_beside_a_transformers_model_are_strangers_there(checkpoint: Write, tmp_path: Path) -> None:
    output = tmp_path / "out"
    distconv.convert(checkpoint(SPEC), output)
    shutil.copy(checkpoint(SPEC) / "consolidated.00.pth", output)
    for _without in range(2):
        assert any("consolidated.00.pth: not of this model" in words for words in find(output, STRUCTURE))
        (output / "distconv.json").unlink(missing_ok=True)


CONVERSIONS: dict[str, tuple[dict[str, object], str]] = {
    "another target": ({"to": "mistral"}, "to of the conversion is 'mistral', expected one of transformers, meta"),
    "no text": ({"to": 1}, "to of the conversion is 1, expected text"),
    "other shards": ({"shards": 3}, "shards of the conversion is 3, it has 2 shards"),
    "no shards": ({"shards": None}, "shards of the conversion is None, expected a whole number"),
    "the other target": ({"to": "transformers"}, "chunk 1 is not model-00001-of-00002.safetensors"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "words"), CONVERSIONS.values(), ids=CONVERSIONS)
def test_a_receipt_says_what_its_target_says_and_nothing_else(
    output: Path, changes: dict[str, object], words: str
) -> None:
    conversion = json.loads((output / "distconv.json").read_text())["conversion"]
    sign(output, conversion=conversion | changes)
    assert any(words in found for found in find(output))


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "../x", "consolidated.02.pth", "other.pth"]
)
def test_a_receipt_names_only_what_a_conversion_to_meta_writes(output: Path, name: str) -> None:
    receipt = json.loads((output / "distconv.json").read_text())
    sign(output, files=receipt["files"] | {name: "0" * 64})
    assert any(f"it names {name!r}, which no conversion writes" in words for words in find(output))
    sign(
        output, files=receipt["files"], chunks=[*receipt["chunks"][:1], receipt["chunks"][1] | {"name": name}]
    )
    assert any("shard 2 is not consolidated.01.pth" in words for words in find(output))


@settings(max_examples=share(60), database=None)
@given(data=st.data())
def test_receipts_that_say_nonsense_are_findings(model: Path, data: st.DataObject) -> None:
    path = model / "distconv.json"
    content = path.read_bytes()
    part = data.draw(st.sampled_from(["chunks", "files", "conversion"]))
    receipt = json.loads(content)
    try:
        write_signed(path, receipt | {part: data.draw(mutations(receipt[part]))})
        look(model)
    finally:
        path.write_bytes(content)


def test_a_recorded_digest_of_a_whole_shard_is_compared_too(output: Path) -> None:
    chunks = json.loads((output / "distconv.json").read_text())["chunks"]
    sign(output, chunks=[chunks[0], chunks[1] | {"xxh3_128": "0" * 32}])
    (words,) = find(output)
    assert f"{SHARD}: its header differs from its digest in distconv.json" in words


@pytest.mark.parametrize("seed", range(3))
def test_an_archive_of_random_bytes_is_a_finding(output: Path, seed: int) -> None:
    content = random.Random(seed).randbytes(5_000)
    (output / SHARD).write_bytes((b"", b"PK\x03\x04", b"\x80\x02")[seed] + content)
    assert any(SHARD in words for words in find(output))


@settings(max_examples=share(60), database=None)
@given(data=st.data())
def test_params_that_say_nonsense_are_findings(model: Path, data: st.DataObject) -> None:
    path = model / "params.json"
    content = path.read_bytes()
    changed = data.draw(mutations(json.loads(content)))
    try:
        path.write_text(json.dumps(changed))
        found = look(model)
        assert any("params.json" in words for words in found)
    finally:
        path.write_bytes(content)


CONVERTED = [
    (Spec("llama-2", heads=8, kv_heads=4, shards=2), 1),
    (Spec("llama-3.1", heads=8, kv_heads=4, shards=2), 8),
    (Spec("llama-3.2", heads=8, kv_heads=4, tied=True), 1),
    (Spec("llama-3.2", heads=8, kv_heads=4, tied=True), 2),
]


@pytest.mark.first(2)
@pytest.mark.parametrize(("spec", "shards"), CONVERTED, ids=str)
def test_what_a_conversion_writes_is_whole_and_what_is_damaged_is_made_again(
    checkpoint: Write, tmp_path: Path, spec: Spec, shards: int
) -> None:
    source, output = checkpoint(spec), tmp_path / "out"
    distconv.convert(source, output, to="meta", shards=shards)
    assert [find(output, depth) for depth in Depth] == [[], [], []]
    before = digest_folder(output)
    last = output / f"consolidated.{shards - 1:02d}.pth"
    for place, verify in ((last.stat().st_size // 2, True), (20, False), (-30, False)):
        flip(last, place)
        assert find(output)
        assert not distconv.convert(source, output, to="meta", shards=shards, verify=verify).already_done
        assert digest_folder(output) == before
    (output / "other.pth").write_bytes(b"")
    with pytest.raises(OutputError, match=r"other\.pth: not of this model"):
        distconv.convert(source, output, to="meta", shards=shards)


def test_a_model_of_one_target_takes_the_place_of_one_of_the_other_only_when_asked(
    checkpoint: Write, tmp_path: Path
) -> None:
    source, output = checkpoint(SPEC), tmp_path / "out"
    for first, second in (({"to": "meta", "shards": 2}, {}), ({}, {"to": "meta", "shards": 2})):
        distconv.convert(source, output, **first, overwrite=True)  # type: ignore[arg-type]
        with pytest.raises(OutputError, match="holds another conversion"):
            distconv.convert(source, output, **second)  # type: ignore[arg-type]
        assert distconv.verify(output).ok
        distconv.convert(source, output, **second, overwrite=True)  # type: ignore[arg-type]
        assert distconv.verify(output).ok
        assert bool(list(output.glob("*.pth"))) != bool(list(output.glob("*.safetensors")))
