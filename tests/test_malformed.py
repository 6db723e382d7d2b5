"""Bad input, through the command: exit code 2, a message of its own, nothing written."""

import json
import pickle
import shutil
import signal
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import distconv
from distconv.cli import main
from distconv.cli.screen import name_options
from tests.checkpoints import Spec
from tests.programs import PLACES, VALUES

Write = Callable[[Spec], Path]
Damage = Callable[[Path], object]
SPEC = Spec("llama-2", heads=8, kv_heads=4, shards=4, dim=96, checklist=False, multiple_of=96)


def params(**changes: object) -> Damage:
    """Change fields of params.json; None removes one."""

    def damage(folder: Path) -> None:
        content = json.loads((folder / "params.json").read_text()) | changes
        kept = {key: value for key, value in content.items() if value is not None}
        (folder / "params.json").write_text(json.dumps(kept))

    return damage


def write(name: str, content: bytes) -> Damage:
    """Replace a file."""
    return lambda folder: (folder / name).write_bytes(content)


def remove(*names: str) -> Damage:
    """Remove files."""
    return lambda folder: [(folder / name).unlink() for name in names]


def rename(before: str, after: str) -> Damage:
    """Rename a file."""

    def damage(folder: Path) -> None:
        (folder / after).parent.mkdir(exist_ok=True)
        (folder / before).rename(folder / after)

    return damage


def cut(name: str, share: float) -> Damage:
    """Cut a file short."""

    def damage(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(share * len(content))])

    return damage


def state(number: int, change: Callable[[dict[str, Any]], object]) -> Damage:
    """Change what a shard's state dict holds."""

    def damage(folder: Path) -> None:
        path = folder / f"consolidated.{number:02d}.pth"
        content = torch.load(path, weights_only=True)
        changed = change(content)
        torch.save(content if changed is None else changed, path)

    return damage


def every_state(change: Callable[[dict[str, Any]], object]) -> Damage:
    """Change what all shards hold."""

    def damage(folder: Path) -> None:
        for number in range(SPEC.shards):
            state(number, change)(folder)

    return damage


def put(name: str, change: Callable[[torch.Tensor], object]) -> Callable[[dict[str, Any]], None]:
    """Replace one tensor."""

    def apply(tensors: dict[str, Any]) -> None:
        tensors[name] = change(tensors[name])

    return apply


def drop(*names: str) -> Callable[[dict[str, Any]], None]:
    """Remove tensors."""
    return lambda tensors: [tensors.pop(name) for name in names] and None


def zipped(change: Callable[[dict[str, bytes]], None], method: int = zipfile.ZIP_STORED) -> Damage:
    """Write the first shard's records again, changed or compressed."""

    def damage(folder: Path) -> None:
        path = folder / "consolidated.00.pth"
        with zipfile.ZipFile(path) as archive:
            records = {name: archive.read(name) for name in archive.namelist()}
        change(records)
        with zipfile.ZipFile(path, "w", method) as archive:
            for name, content in records.items():
                archive.writestr(name, content)

    return damage


def record(name: str, content: bytes | None) -> Callable[[dict[str, bytes]], None]:
    """Replace or remove the record whose name ends so."""

    def change(records: dict[str, bytes]) -> None:
        (found,) = (key for key in records if key.endswith(name))
        records.pop(found)
        if content is not None:
            records[found] = content

    return change


def program(value: str, place: str) -> Damage:
    """Put a hostile value into the first shard's description."""
    return zipped(record("data.pkl", b"\x80\x02" + PLACES[place](VALUES[value](60_000)) + b"."))


class Evil:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        import os

        return os.system, ("touch /tmp/never",)


FIRST, SECOND = "consolidated.00.pth", "consolidated.01.pth"
EMBEDDING, WQ, W1, NORM = (
    "tok_embeddings.weight",
    "layers.0.attention.wq.weight",
    "layers.0.feed_forward.w1.weight",
    "norm.weight",
)

CASES: list[tuple[str, Damage, str]] = [
    ("no params.json", remove("params.json"), "no params.json beside the shards"),
    ("no shards", remove(*(f"consolidated.{n:02d}.pth" for n in range(4))), "no checkpoint of Meta's, Transformers' or a trainer's here"),
    ("a shard is missing", remove(SECOND), "shards 00, 02, 03 found, 01 missing"),
    ("the first shard is missing", remove(FIRST), "shards 01, 02, 03 found, 00 missing"),
    ("the last shard is missing", remove("consolidated.03.pth"), "3 of 4 shards, by their heads: layers.0.attention.wq.weight has"),
    ("a shard number twice", lambda f: shutil.copy(f / SECOND, f / "consolidated.1.pth"), "consolidated.1.pth"),
    ("no tokenizer", remove("tokenizer.model"), "no tokenizer.model"),
    ("empty shard", write(FIRST, b""), "an empty file"),
    ("HTML as shard", write(SECOND, b"<html><body>403 Forbidden</body></html>"), "an HTML or XML page"),
    ("XML as shard", write(FIRST, b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>"), "HTML or XML"),
    ("git-LFS pointer", write(FIRST, b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"), "git-LFS pointer"),
    ("JSON as shard", write(FIRST, b'{"error": "denied"}'), "expected a torch checkpoint"),
    ("text as shard", write(FIRST, b"Not Found\n"), "expected a torch checkpoint"),
    ("safetensors as shard", write(FIRST, (2).to_bytes(8, "little") + b"{}"), "expected a torch checkpoint"),
    ("zeros as shard", write(FIRST, bytes(5000)), "expected a torch checkpoint"),
    ("gzip as shard", write(FIRST, b"\x1f\x8b\x08\x00" + bytes(100)), "expected a torch checkpoint"),
    ("truncated in the middle", cut(FIRST, 0.5), "truncated or damaged: download it again"),
    ("truncated near the end", cut(SECOND, 0.999), "truncated or damaged: download it again"),
    ("truncated at the beginning", cut(FIRST, 0.001), "truncated or damaged"),
    ("deflated records", zipped(lambda _records: None, zipfile.ZIP_DEFLATED), "is compressed or encrypted"),
    ("big endian", zipped(record("byteorder", b"big")), "byte order b'big'"),
    ("strange byte order", zipped(record("byteorder", b"?")), "byte order b'?'"),
    ("a record is missing", zipped(record("data/0", None)), "no record"),
    ("a record of another size", zipped(record("data/0", b"12345678")), "its storage has 8 bytes"),
    ("no description", zipped(record("data.pkl", None)), "without one data.pkl"),
    ("empty description", zipped(record("data.pkl", b"")), "consolidated.00.pth"),
    ("a description that calls os.system", zipped(record("data.pkl", pickle.dumps({"a": Evil()}))), "system"),
    ("a description that builds a list", zipped(record("data.pkl", pickle.dumps([1, 2]))), "consolidated.00.pth"),
    ("a description of text", zipped(record("data.pkl", pickle.dumps({"a": "text"}))), "consolidated.00.pth"),
    ("a key that takes for ever to hash", program("a tuple doubled", "a key"), "consolidated.00.pth"),
    ("a shape that takes for ever to show", program("a list doubled", "argument 2"), "a list is not a shape"),
    ("a description nested without end", program("lists in lists", "all"), "it holds a list, expected a dict"),
    ("a description that changes a class", program("the name b'torch\\nFloatStorage'", "what is built of slots"), "the state of a data type"),
    ("a bare pickle", write(FIRST, pickle.dumps({"a": 1})), "not a readable torch checkpoint"),
    ("a tensor missing in one shard", state(1, drop(WQ)), WQ),
    ("a tensor missing in all", every_state(drop(W1)), W1),
    ("the last norm missing", every_state(drop(NORM)), NORM),
    ("the embedding missing", every_state(drop(EMBEDDING)), EMBEDDING),
    ("the output missing", every_state(drop("output.weight")), "output.weight"),
    ("a whole layer missing", every_state(lambda t: [t.pop(k) for k in list(t) if k.startswith("layers.1.")] and None), "layers.1."),
    ("an unknown tensor", state(0, lambda t: t.update({"surprise.weight": torch.ones(2)})), "surprise.weight"),
    ("a layer too many", every_state(lambda t: t.update({"layers.7.attention_norm.weight": torch.ones(96)})), "layers.7."),
    ("a shape that differs between shards", state(1, put(WQ, lambda t: t[:-8].clone())), WQ),
    ("fewer dimensions", state(1, put(WQ, lambda t: t.flatten().clone())), WQ),
    ("a type that differs between shards", state(2, put(WQ, lambda t: t.float())), WQ),
    ("integers", every_state(put(WQ, lambda t: t.to(torch.int32))), "int32"),
    ("bytes", every_state(put(W1, lambda t: t.to(torch.int8))), "int8"),
    ("complex numbers", every_state(put(WQ, lambda t: t.to(torch.complex64))), "complex64"),
    ("norms that are cut", every_state(put(NORM, lambda t: t[:24].clone())), NORM),
    ("an empty tensor", every_state(put(WQ, lambda t: t[:0].clone())), WQ),
    ("a number for a tensor", state(0, put(WQ, lambda _t: 3)), "consolidated.00.pth"),
    ("Transformers' names", every_state(lambda _t: {"model.embed_tokens.weight": torch.ones(4, 4)}), "Transformers"),
    ("a shard of nothing", state(0, lambda _t: {}), "consolidated.00.pth"),
    ("params: not JSON", write("params.json", b'{"dim": 96'), "not JSON"),
    ("params: empty", write("params.json", b""), "params.json"),
    ("params: HTML", write("params.json", b"<!DOCTYPE html><p>no"), "an HTML or XML page"),
    ("params: a list", write("params.json", b"[1]"), "expected a JSON object"),
    ("params: too deep", write("params.json", b"[" * 100_000), "not JSON"),
    ("params: too large", write("params.json", b" " * (3 << 20)), "bytes, expected at most"),
    ("params: Transformers' config", write("params.json", b'{"hidden_size": 96, "model_type": "llama"}'), "params.json"),
    ("params: no dim", params(dim=None), "no 'dim'"),
    ("params: no layers", params(n_layers=None), "no 'n_layers'"),
    ("params: no heads", params(n_heads=None), "no 'n_heads'"),
    ("params: dim as text", params(dim="ninety-six"), "dim is 'ninety-six'"),
    ("params: dim as a fraction", params(dim=96.5), "dim is 96.5"),
    ("params: dim negative", params(dim=-96), "dim is -96"),
    ("params: dim beyond all", params(dim=10**30), "dim is 1000000000"),
    ("params: dim of another model", params(dim=192), "96"),
    ("params: zero heads", params(n_heads=0), "n_heads is 0"),
    ("params: heads that do not divide", params(n_heads=7), "not a multiple of n_heads 7"),
    ("params: key heads that do not divide", params(n_kv_heads=3), "not a multiple of n_kv_heads 3"),
    ("params: key heads of another model", params(n_kv_heads=2), "wk"),
    ("params: an odd head", params(n_heads=32), "head size 3 is odd"),
    ("params: layers of another model", params(n_layers=5), "layers."),
    ("params: fewer layers", params(n_layers=1), "layers.1."),
    ("params: NaN", params(norm_eps=float("nan")), "NaN"),
    ("params: infinite", params(norm_eps=float("inf")), "Infinity"),
    ("params: no epsilon at all", params(norm_eps=0), "norm_eps is 0"),
    ("params: a negative base", params(rope_theta=-1.0), "rope_theta is -1.0"),
    ("params: quantized", params(quantization_args={"scheme": "int4"}), "quantized"),
    ("params: LoRA", params(lora_args={"rank": 8}), "LoRA"),
    ("params: vision", params(vision_chunk_size=448), "Vision"),
    ("params: experts", params(moe_args={"n": 8}), "Llama 4"),
    ("params: Mistral", params(sliding_window=4096), "Mistral"),
    ("tokenizer: empty", write("tokenizer.model", b""), "tokenizer.model"),
    ("tokenizer: HTML", write("tokenizer.model", b"<html>403</html>"), "tokenizer.model"),
    ("tokenizer: cut", cut("tokenizer.model", 0.37), "tokenizer.model"),
    ("tokenizer: git-LFS pointer", write("tokenizer.model", b"version https://git-lfs.github.com/spec/v1\noid"), "git-LFS pointer"),
    ("tokenizer: noise", write("tokenizer.model", bytes(range(256)) * 8), "tokenizer.model"),
    ("tokenizer: a token of 200 kB", write("tokenizer.model", b"eHh4" * 50_000 + b" 0\n"), "tokenizer.model"),
    ("tokenizer: broken base64", write("tokenizer.model", b"!!!! 0\n"), "tokenizer.model"),
]  # fmt: skip


def test_there_are_as_many_as_people_meet() -> None:
    assert len(CASES) >= 60
    assert len({name for name, _damage, _words in CASES}) == len(CASES)


@pytest.mark.product
@pytest.mark.parametrize(("damage", "words"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
@pytest.mark.parametrize("existing", [False, True], ids=["no output yet", "an output"])
def test_bad_input_is_told_and_output_is_left_alone(
    checkpoint: Write,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Damage,
    words: str,
    existing: bool,
) -> None:
    source = shutil.copytree(checkpoint(SPEC), tmp_path / "in")
    output = tmp_path / "out"
    damage(source)
    if existing:
        output.mkdir()
        (output / "notes.txt").write_text("mine")
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as ended:
            main(["convert", str(source), str(output), *(["--overwrite"] if existing else [])])
    finally:
        signal.signal(signal.SIGTERM, handler)
    printed = capsys.readouterr()
    assert ended.value.code == 2, printed.err
    assert words in printed.err
    errors = [line for line in printed.err.splitlines() if line.startswith("error: ")]
    assert errors
    try:
        told = distconv.plan(source).notes  # of what may still come
    except distconv.DistconvError as error:
        told = tuple(str(error).splitlines())
    assert {name_options(f"error: {line}") for line in told} >= set(errors)
    assert "Traceback" not in printed.err
    assert printed.out == ""
    assert [path.name for path in output.iterdir()] == ["notes.txt"] if existing else not output.exists()


def test_the_undamaged_checkpoint_is_good(checkpoint: Write, tmp_path: Path) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    main(["convert", str(checkpoint(SPEC)), str(tmp_path / "out"), "--quiet"])
    signal.signal(signal.SIGTERM, handler)
    assert (tmp_path / "out/config.json").exists()
