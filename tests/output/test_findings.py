"""All that is said of a damaged model folder, to the letter: what is wrong, where, and which file has to be made again."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import distconv
from distconv.errors import OutputError
from distconv.moving.progress import SilentProgress
from distconv.output.findings import Depth
from distconv.output.proof import _describe_unrecorded, prove
from distconv.output.targets import META, TRANSFORMERS, Target
from distconv.storage.local import LocalStorage
from tests import test_whole, test_whole_meta
from tests.checkpoints import Spec
from tests.meta_folders import write_meta_folder

Write = Callable[[Spec], Path]
Damage = Callable[[Path], object]
OF_CHUNKS = test_whole.IN_THE_DATA | test_whole.IN_THE_STRUCTURE | test_whole.STRANGERS
OF_SHARDS = {
    name: damage for name, (damage, *_) in (test_whole_meta.DAMAGES | test_whole_meta.MISFITS).items()
}


def resaved(change: Callable[[dict[str, torch.Tensor]], object]) -> Damage:
    """Change a model's tensors and save it as one file, so that nothing is damaged; no receipt tells of it."""

    def damage(folder: Path) -> None:
        tensors: dict[str, torch.Tensor] = {}
        for path in folder.glob("model-*.safetensors"):
            tensors |= load_file(path)
            path.unlink()
        for name in (test_whole.INDEX, "distconv.json"):
            (folder / name).unlink()
        change(tensors)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return damage


def unrecorded(damage: Damage) -> Damage:
    """Damage something, and let no receipt tell of it."""

    def both(folder: Path) -> None:
        damage(folder)
        (folder / "distconv.json").unlink()

    return both


OF_CHUNKS |= {
    "no receipt": resaved(lambda tensors: tensors),
    "a tensor too few": resaved(lambda tensors: tensors.pop("lm_head.weight")),
    "a tensor too many": resaved(lambda tensors: tensors.update({"score.weight": torch.ones(2)})),
    "a tensor of another shape": resaved(
        lambda tensors: tensors.update({"model.norm.weight": torch.ones(2)})
    ),
    "strangers without a receipt": unrecorded(
        lambda folder: [put(folder) for put in (test_whole.put("added_tokens.json"), test_whole.put("x.bin"))]
    ),
    "a config that leads elsewhere": lambda folder: test_whole.edit(folder / "config.json", auto_map={}),
    "an index that names other files": lambda folder: test_whole.edit(
        folder / test_whole.INDEX, weight_map={"a": "b"}
    ),
    "an index of nothing": lambda folder: test_whole.edit(folder / test_whole.INDEX, weight_map=[]),
    "an index that leads out of the folder": lambda folder: test_whole.edit(
        folder / test_whole.INDEX, weight_map={"a": "../b"}
    ),
}
OF_SHARDS |= {
    "no receipt": unrecorded(lambda folder: folder),
    "a flipped bit without a receipt": unrecorded(test_whole_meta.in_a_record),
    "a damaged checklist without a receipt": unrecorded(test_whole.put("checklist.chk", b"nonsense")),
    "a missing file without a receipt": unrecorded(lambda folder: (folder / "tokenizer.model").unlink()),
    "no shards": unrecorded(lambda folder: [path.unlink() for path in folder.glob("*.pth")]),
    "a file in its place": lambda folder: (shutil.rmtree(folder), folder.touch()),
    "nothing": shutil.rmtree,
}

CHUNKS: dict[str, list[str]] = {
    "a flipped bit": [
        "out/model-00002-of-00003.safetensors: the data of model.layers.1.input_layernorm.weight differs from its digest in distconv.json [model-00002-of-00003.safetensors]",
    ],
    "flipped bits in two chunks": [
        "out/model-00001-of-00003.safetensors: the data of model.layers.0.input_layernorm.weight differs from its digest in distconv.json [model-00001-of-00003.safetensors]",
        "out/model-00003-of-00003.safetensors: the data of model.norm.weight differs from its digest in distconv.json [model-00003-of-00003.safetensors]",
    ],
    "a chunk cut short": [
        "out/model-00002-of-00003.safetensors: its tensors end at byte 93,376, the file at 93,375; the file is truncated or damaged [model-00002-of-00003.safetensors]",
    ],
    "an empty chunk": [
        "out/model-00002-of-00003.safetensors: ends at byte 0, expected data up to byte 8; the file is truncated [model-00002-of-00003.safetensors]",
    ],
    "a missing chunk": [
        "out/model-00002-of-00003.safetensors: missing, though the index names it [model-00002-of-00003.safetensors]",
    ],
    "a flipped bit in a header": [
        "out/model.safetensors.index.json: does not say what the chunks hold",
        "out/model-00002-of-00003.safetensors: does not hold the tensors that distconv.json records [model-00002-of-00003.safetensors]",
        "out/model-00002-of-00003.safetensors: the data of model.layers.0.mlp.`own_proj.weight differs from its digest in distconv.json [model-00002-of-00003.safetensors]",
        "model.layers.0.mlp.down_proj.weight: missing, the model of out/config.json needs it",
        "model.layers.0.mlp.`own_proj.weight: the model of out/config.json does not take it",
    ],
    "a changed config": [
        "out/config.json: differs from its SHA-256 in distconv.json",
    ],
    "a missing config": [
        "out/config.json: missing",
    ],
    "a changed tokenizer": [
        "out/tokenizer.json: differs from its SHA-256 in distconv.json",
    ],
    "a missing tokenizer": [
        "out/tokenizer.json: missing",
    ],
    "a changed generation config": [
        "out/generation_config.json: differs from its SHA-256 in distconv.json",
    ],
    "a changed index": [
        "out/model.safetensors.index.json: does not say what the chunks hold",
        "out/model.safetensors.index.json: differs from its SHA-256 in distconv.json",
    ],
    "a missing index": [
        "out: neither model.safetensors.index.json nor model.safetensors; no model for Transformers, or its conversion is not finished",
        "out/model.safetensors.index.json: missing",
    ],
    "a damaged receipt": [
        "out/distconv.json: damaged or changed, its own digest differs; `against=INPUT` compares without it",
    ],
    "weights that win": [
        "out/model.safetensors: not of this model, and may be loaded in its place",
    ],
    "weights that lose": [
        "out/pytorch_model.bin: not of this model, and may be loaded in its place",
    ],
    "weights of another name": [
        "out/consolidated.safetensors: not of this model, and may be loaded in its place",
    ],
    "weights of a variant": [
        "out/model.fp16.safetensors: not of this model, and may be loaded in its place",
    ],
    "a chunk too many": [
        "out/model-00099-of-00099.safetensors: not of this model, and may be loaded in its place",
    ],
    "an adapter": [
        "out/adapter_config.json: not of this model, and may be loaded in its place",
    ],
    "added tokens": [
        "out/added_tokens.json: not of this model, and may be loaded in its place",
    ],
    "a map of special tokens": [
        "out/special_tokens_map.json: not of this model, and may be loaded in its place",
    ],
    "a chat template": [
        "out/chat_template.jinja: not of this model, and may be loaded in its place",
    ],
    "a tokenizer of another model": [
        "out/spiece.model: not of this model, and may be loaded in its place",
    ],
    "more chat templates": [
        "out/additional_chat_templates: not of this model, and may be loaded in its place",
    ],
    "no receipt": [
        "note: out: no distconv.json, so nothing tells what the data should be",
    ],
    "a tensor too few": [
        "lm_head.weight: missing, the model of out/config.json needs it",
        "note: out: no distconv.json, so nothing tells what the data should be",
    ],
    "a tensor too many": [
        "score.weight: the model of out/config.json does not take it",
        "note: score.weight: stored as a wider type than bfloat16, which most weights have",
        "note: out: no distconv.json, so nothing tells what the data should be",
    ],
    "a tensor of another shape": [
        "model.norm.weight: shape (2,), the model of out/config.json takes (64,)",
        "note: model.norm.weight: stored as a wider type than bfloat16, which most weights have",
        "note: out: no distconv.json, so nothing tells what the data should be",
    ],
    "strangers without a receipt": [
        "note: out/x.bin: weights that were not looked at, as Transformers prefers the model's",
        "note: out: no distconv.json, so nothing tells what the data should be",
    ],
    "a config that leads elsewhere": [
        "out/config.json: has auto_map, which no conversion writes and which changes what is loaded",
        "out/config.json: differs from its SHA-256 in distconv.json",
    ],
    "an index that names other files": [
        "out/model.safetensors.index.json: names other chunks",
        "out/model.safetensors.index.json: does not say what the chunks hold",
        "out/model.safetensors.index.json: differs from its SHA-256 in distconv.json",
    ],
    "an index of nothing": [
        "out/model.safetensors.index.json: no weight_map",
        "out/model.safetensors.index.json: does not say what the chunks hold",
        "out/model.safetensors.index.json: differs from its SHA-256 in distconv.json",
    ],
    "an index that leads out of the folder": [
        "out/model.safetensors.index.json: names '../b', expected a file in this folder",
        "out/model.safetensors.index.json: does not say what the chunks hold",
        "out/model.safetensors.index.json: differs from its SHA-256 in distconv.json",
    ],
}

SHARDS: dict[str, list[str]] = {
    "a flipped bit in a record": [
        "out/consolidated.01.pth: the data of tok_embeddings.weight differs from its digest in distconv.json [consolidated.01.pth]",
    ],
    "a flipped bit in a local header": [
        "out/consolidated.01.pth: its archive is not in the one form that its tensors have: byte 45,786 differs [consolidated.01.pth]",
        "out/consolidated.01.pth: MD5 …, checklist.chk gives …",
    ],
    "a flipped bit in a signature": [
        "out/consolidated.01.pth: no record header of stored data at byte 45,776; the file is damaged [consolidated.01.pth]",
    ],
    "a flipped bit in the pickle": [
        "out/consolidated.01.pth: the record consolidated.01/data.pkl differs from its CRC32; the file is damaged [consolidated.01.pth]",
    ],
    "a flipped bit in the serialization id": [
        "out/consolidated.01.pth: its archive is not in the one form that its tensors have: byte 171,830 differs [consolidated.01.pth]",
        "out/consolidated.01.pth: MD5 …, checklist.chk gives …",
    ],
    "a flipped bit in the directory": [
        "out/consolidated.01.pth: the record consolidated.01/data/20 claims two sizes; the file is damaged [consolidated.01.pth]",
    ],
    "a flipped bit in the last record": [
        "out/consolidated.01.pth: its archive is not in the one form that its tensors have: byte 173,883 differs [consolidated.01.pth]",
        "out/consolidated.01.pth: MD5 …, checklist.chk gives …",
    ],
    "a shard cut short": [
        "out/consolidated.01.pth: not a readable torch checkpoint (BadZipFile: File is not a zip file); the file is truncated or damaged [consolidated.01.pth]",
    ],
    "a shard without its last byte": [
        "out/consolidated.01.pth: not a readable torch checkpoint (BadZipFile: File is not a zip file); the file is truncated or damaged [consolidated.01.pth]",
    ],
    "an empty shard": [
        "out/consolidated.01.pth: it is an empty file, expected a torch checkpoint [consolidated.01.pth]",
    ],
    "a shard with more behind it": [
        "out/consolidated.01.pth: its archive is not in the one form that its tensors have: 173,893 bytes, expected 173,884 [consolidated.01.pth]",
        "out/consolidated.01.pth: 173,893 bytes, distconv.json records 173,884 [consolidated.01.pth]",
        "out/consolidated.01.pth: MD5 …, checklist.chk gives …",
    ],
    "a missing shard": [
        "out/consolidated.01.pth: missing [consolidated.01.pth]",
    ],
    "a shard too many": [
        "out/consolidated.02.pth: not of this model, and may be loaded in its place",
    ],
    "a shard of another model": [
        "out/consolidated.08.pth: not of this model, and may be loaded in its place",
    ],
    "weights of another name": [
        "out/other.pth: not of this model, and may be loaded in its place",
    ],
    "weights of another format": [
        "out/model.safetensors: not of this model, and may be loaded in its place",
    ],
    "a folder that the loader takes for a shard": [
        "out/other.pth: not of this model, and may be loaded in its place",
    ],
    "a config": [
        "out/config.json: not of this model, and may be loaded in its place",
    ],
    "another tokenizer": [
        "out/spiece.model: not of this model, and may be loaded in its place",
    ],
    "a changed tokenizer": [
        "out/tokenizer.model: differs from its SHA-256 in distconv.json",
        "out/tokenizer.model: MD5 …, checklist.chk gives …",
    ],
    "a missing tokenizer": [
        "out/tokenizer.model: missing",
        "out/tokenizer.model: missing, though checklist.chk lists it",
    ],
    "another params.json": [
        "out/params.json: differs from its SHA-256 in distconv.json",
        "out/params.json: MD5 …, checklist.chk gives …",
        "out/params.json: says 3 layers, the shards hold 2: there is no layers.2.*; download the missing files, or take the params.json of this model",
    ],
    "a missing params.json": [
        "out: no params.json; the conversion is not finished, or params.json was not copied with the shards",
        "out/params.json: missing",
        "out/params.json: missing, though checklist.chk lists it",
    ],
    "a changed checklist": [
        "out/checklist.chk: differs from its SHA-256 in distconv.json",
        "out/consolidated.00.pth: MD5 …, checklist.chk gives …",
    ],
    "a checklist with a wrong line": [
        "out/consolidated.01.pth: MD5 …, checklist.chk gives …",
    ],
    "a damaged receipt": [
        "out/distconv.json: damaged or changed, its own digest differs; `against=INPUT` compares without it",
    ],
    "a conversion that is not finished": [
        "out: a conversion into it is not finished (0 chunks so far); run the same conversion again, and it goes on: `distconv convert INPUT out`, with the options that it had",
    ],
    "a shard that was zipped again": [
        "out/consolidated.01.pth: its archive is not in the one form that its tensors have: 171,890 bytes, expected 173,884 [consolidated.01.pth]",
        "out/consolidated.01.pth: 171,890 bytes, distconv.json records 173,884 [consolidated.01.pth]",
        "out/consolidated.01.pth: MD5 …, checklist.chk gives …",
    ],
    "a compressed shard": [
        "out/consolidated.01.pth: the record consolidated.01/byteorder is compressed or encrypted, expected stored data; save the checkpoint again with torch.save [consolidated.01.pth]",
    ],
    "a shard in torch's old format": [
        "out/consolidated.01.pth: not in the one form that its tensors have: tok_embeddings.weight is part of a record [consolidated.01.pth]",
        "out/consolidated.01.pth: 169,506 bytes, distconv.json records 173,884 [consolidated.01.pth]",
        "out/consolidated.01.pth: MD5 …, checklist.chk gives …",
    ],
    "tensors that lie in columns": [
        "out/consolidated.01.pth: not in the one form that its tensors have: tok_embeddings.weight is part of a record [consolidated.01.pth]",
        "out/consolidated.01.pth: MD5 …, checklist.chk gives …",
    ],
    "a tensor too few": [
        "output.weight: missing in consolidated.00.pth, consolidated.01.pth",
    ],
    "a tensor too few in one rank": [
        "norm.weight: missing in consolidated.01.pth",
    ],
    "frequencies, which the strict loader does not take": [
        "consolidated.00.pth: rope.freqs is no tensor of a 2-layer model; save the model without it, or take the params.json that belongs to it",
    ],
    "half a tensor": [
        "output.weight in consolidated.00.pth: shape (8, 64), expected (288, 64)",
    ],
    "parts of different sizes": [
        "layers.0.feed_forward.w1.weight: shape (10, 64) in consolidated.00.pth, (166, 64) in consolidated.01.pth; Meta's code takes equal parts only",
    ],
    "more layers": [
        "out/params.json: says 3 layers, the shards hold 2: there is no layers.2.*; download the missing files, or take the params.json of this model",
    ],
    "other key heads": [
        "layers.0.attention.wk.weight in consolidated.00.pth: shape (16, 64), expected (32, 64)",
        "layers.0.attention.wk.weight in consolidated.01.pth: shape (16, 64), expected (32, 64)",
        "layers.1.attention.wk.weight in consolidated.00.pth: shape (16, 64), expected (32, 64)",
        "layers.1.attention.wk.weight in consolidated.01.pth: shape (16, 64), expected (32, 64)",
        "layers.0.attention.wv.weight in consolidated.00.pth: shape (16, 64), expected (32, 64)",
        "layers.0.attention.wv.weight in consolidated.01.pth: shape (16, 64), expected (32, 64)",
        "layers.1.attention.wv.weight in consolidated.00.pth: shape (16, 64), expected (32, 64)",
        "layers.1.attention.wv.weight in consolidated.01.pth: shape (16, 64), expected (32, 64)",
    ],
    "another feed-forward size": [
        "out/params.json: multiple_of and ffn_dim_multiplier give a feed-forward size of 1,024, the tensors have 176",
    ],
    "another vocabulary": [
        "out/params.json: vocab_size 7, the tensors have 576 rows",
    ],
    "nonsense": [
        "out/params.json: dim is 'wide', expected a whole number from 1 to 16,777,216",
    ],
    "no receipt": [
        "note: out: no distconv.json, so the data was compared only with the CRC32s of its own records, and with checklist.chk where it is; whether a download of Meta's is whole `distconv check out` tells",
    ],
    "a flipped bit without a receipt": [
        "out/consolidated.01.pth: the data of tok_embeddings.weight differs from its CRC32 in the archive's directory [consolidated.01.pth]",
        "note: out: no distconv.json, so the data was compared only with the CRC32s of its own records, and with checklist.chk where it is; whether a download of Meta's is whole `distconv check out` tells",
    ],
    "a damaged checklist without a receipt": [
        "out/checklist.chk: line 1 is no `md5  name`; the file is text",
        "note: out: no distconv.json, so the data was compared only with the CRC32s of its own records, and with checklist.chk where it is; whether a download of Meta's is whole `distconv check out` tells",
    ],
    "a missing file without a receipt": [
        "out/tokenizer.model: missing, though checklist.chk lists it",
        "note: out: no distconv.json, so the data was compared only with the CRC32s of its own records, and with checklist.chk where it is; whether a download of Meta's is whole `distconv check out` tells",
    ],
    "no shards": [
        "refused: out: neither model.safetensors.index.json nor model.safetensors; no model for Transformers, or its conversion is not finished; it holds checklist.chk, params.json, tokenizer.model",
    ],
    "a file in its place": [
        "refused: out: a file, expected a folder",
    ],
    "nothing": [
        "refused: out: no such folder",
    ],
}


@pytest.fixture(scope="module")
def chunks(checkpoint: Write, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a finished Transformers folder of three chunks."""
    output = tmp_path_factory.mktemp("chunks") / "out"
    distconv.convert(checkpoint(test_whole.SPEC), output, max_shard_size=test_whole.LIMIT)
    return output


@pytest.fixture(scope="module")
def shards(checkpoint: Write, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a finished folder for Meta's code, of two ranks."""
    return write_meta_folder(tmp_path_factory.mktemp("shards") / "out", checkpoint(test_whole_meta.SPEC))


def say(output: Path) -> list[str]:
    """Give all findings, each with the file that has to be made again, and all notes."""
    try:
        proof = prove(LocalStorage(), str(output), Depth.MODEL, SilentProgress())
    except OutputError as error:
        return [f"refused: {error}".replace(str(output), "out")]
    found = [f"{it.words} [{it.chunk}]" if it.chunk else it.words for it in proof.findings]
    lines = [*found, *(f"note: {note}" for note in proof.notes)]
    # The sizes of these folders are the same each time, the digests need not be.
    return [re.sub("[0-9a-f]{32}", "…", line.replace(str(output), "out")) for line in lines]


@pytest.mark.parametrize(("name", "said"), CHUNKS.items(), ids=CHUNKS)
def test_what_is_said_of_damaged_chunks(chunks: Path, tmp_path: Path, name: str, said: list[str]) -> None:
    output = shutil.copytree(chunks, tmp_path / "out")
    OF_CHUNKS[name](output)
    assert say(output) == said


@pytest.mark.parametrize(("name", "said"), SHARDS.items(), ids=SHARDS)
def test_what_is_said_of_damaged_shards(shards: Path, tmp_path: Path, name: str, said: list[str]) -> None:
    output = shutil.copytree(shards, tmp_path / "out")
    OF_SHARDS[name](output)
    assert say(output) == said


@pytest.mark.parametrize(
    ("target", "depth", "against", "words"),
    [
        (TRANSFORMERS, Depth.MODEL, "in", "only the comparison with in tells what its tensors should be"),
        (META, Depth.MODEL, "in", "only the comparison with in tells what its tensors should be, and only `distconv check out` whether its files are those that Meta published"),
        (TRANSFORMERS, Depth.MODEL, "", "nothing tells what the data should be"),
        (META, Depth.STRUCTURE, "", "nothing tells what the data should be"),
        (META, Depth.DATA, "", "the data was compared only with the CRC32s of its own records, and with checklist.chk where it is; whether a download of Meta's is whole `distconv check out` tells"),
    ],
)  # fmt: skip
def test_what_tells_of_data_that_no_receipt_records_is_said(
    target: Target, depth: Depth, against: str, words: str
) -> None:
    assert _describe_unrecorded(target, depth, "out", against) == words
