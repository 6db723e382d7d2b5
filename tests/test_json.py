"""What commands print with --json follows their schemas, of which every key was seen, and no other would pass."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path

import jsonschema
import pytest

from distconv.cli import main
from distconv.cli.commands import cli
from tests.checkpoints import Spec, write_checklist, write_checkpoint
from tests.dcp_folders import make_model
from tests.downloads import Files, serving
from tests.hub import Hub
from tests.hub import serving as serving_hub
from tests.image_checkpoints import Llama4Spec, VisionSpec, write_image_checkpoint
from tests.stored import run_store
from tests.test_push import push
from tests.test_signatures import write_key

COMMANDS = [name for name, command in cli.commands.items() if "as_json" in {p.name for p in command.params}]
SCHEMAS = resources.files("distconv.output") / "schemas" / "commands"
Document = dict[str, object]


def read_schema(command: str) -> Document:
    """Read a schema as it is shipped."""
    found: Document = json.loads((SCHEMAS / f"{command}.json").read_text())
    jsonschema.Draft202012Validator.check_schema(found)
    return found


class Printed:
    """What commands printed with --json, each held against its schema."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self.documents: list[Document] = []

    def run(self, command: str, *arguments: object, code: int = 0) -> Document:
        """Run a command, and give what it printed."""
        try:
            main([command, *map(str, arguments), "--json"])
            ended = 0
        except SystemExit as exit_:
            ended = int(exit_.code or 0)
        shown = self._capsys.readouterr()
        assert ended == code, shown.err
        return self.take(command, shown.out)

    def take(self, command: str, text: str) -> Document:
        """Hold what was printed against its schema."""
        found: Document = json.loads(text)
        jsonschema.validate(found, read_schema(command))
        self.documents.append(found)
        return found

    def check_keys(self, command: str) -> None:
        """Every key of the schema was printed, and with any other anywhere nothing would pass."""
        schema = read_schema(command)
        seen = {key for document in self.documents for part in list_objects(document) for key in part}
        assert name_keys(schema) - seen == set()
        validator = jsonschema.Draft202012Validator(schema)
        for document in self.documents:
            for part in place_objects(document).values():
                if part is not document.get("for_meta", {}).get("params"):  # Meta's own file
                    part["another"] = "x"
                    assert not validator.is_valid(document), part
                    del part["another"]


def list_objects(value: object) -> list[Document]:
    """Give all objects in a document, itself first."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    mine = [value] if isinstance(value, dict) else []
    return [*mine, *(part for element in inner for part in list_objects(element))]


def place_objects(value: object, place: str = "") -> dict[str, Document]:
    """Give an object of each place in a document; to a schema all elements of a list are in one."""
    if isinstance(value, list):
        return {key: part for element in value for key, part in place_objects(element, f"{place}/").items()}
    if not isinstance(value, dict):
        return {}
    inner = (place_objects(element, f"{place}/{key}") for key, element in value.items())
    return {place: value} | {key: part for parts in inner for key, part in parts.items()}


def name_keys(schema: Document) -> set[str]:
    """Give all keys that a schema names."""
    return {
        key
        for part in list_objects(schema)
        if isinstance(part.get("properties"), dict) and "type" in part
        for key in part["properties"]
    }


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Printed:
    return Printed(capsys)


@pytest.fixture
def source(checkpoint: Callable[[Spec], Path]) -> Path:
    return checkpoint(Spec("llama-2", heads=8, kv_heads=4, shards=2))


def test_every_command_that_prints_json_has_a_schema_and_no_other() -> None:
    assert len(COMMANDS) == 10
    assert {path.name for path in SCHEMAS.iterdir()} == {f"{name}.json" for name in COMMANDS}


def test_conversions(
    printed: Printed, source: Path, folders: Path, tmp_path: Path, sentencepiece_file: Path
) -> None:
    out = tmp_path / "out"
    printed.run("convert", source, out, "--verify", "--max-shard-size", "50kB")
    assert printed.run("convert", source, out, "--max-shard-size", "50kB")["already_done"] is True
    printed.run("convert", out, tmp_path / "meta", "--to", "meta", "--shards", "2")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/step-1").symlink_to(folders / "rows")
    like = ("--like", folders / "llama-hf")
    assert len(printed.run("convert", tmp_path / "run", tmp_path / "steps", "--each", *like)["steps"]) == 1
    shutil.copytree(folders / "grid", tmp_path / "run/step-2")
    (tmp_path / "run/step-2/__0_0.distcp").unlink()
    each = printed.run("convert", tmp_path / "run", tmp_path / "steps", "--each", *like, code=2)
    assert (len(each["steps"]), len(each["failed"])) == (1, 1)
    with run_store(tmp_path / "aws") as store:
        write_checkpoint(tmp_path / "stored", Spec(), sentencepiece_file)
        store.share(tmp_path / "stored", "models", "in/")
        assert printed.run("convert", "s3://models/in", "s3://models/out")["requests"]
    printed.check_keys("convert")


def test_inspections(
    printed: Printed, source: Path, folders: Path, tmp_path: Path, tiktoken_file: Path,
    checkpoint: Callable[[Spec], Path],
) -> None:  # fmt: skip
    printed.run("inspect", source)
    printed.run("inspect", checkpoint(Spec(tokenizer="none")))
    for name, spec in (("vision", VisionSpec()), ("scout", Llama4Spec())):
        write_image_checkpoint(tmp_path / name, spec, tiktoken_file)
        printed.run("inspect", tmp_path / name)
    main(["convert", str(source), str(tmp_path / "hf"), "--quiet"])
    main(["convert", str(tmp_path / "vision"), str(tmp_path / "vision-hf"), "--quiet"])
    printed._capsys.readouterr()
    printed.run("inspect", tmp_path / "hf")
    printed.run("inspect", tmp_path / "vision-hf")
    make_model("qwen3").save_pretrained(tmp_path / "qwen")
    printed.run("inspect", tmp_path / "qwen")
    printed.run("inspect", folders / "fsdp2")
    printed.run("inspect", folders / "fsdp2", "--like", folders / "llama-hf")
    printed.check_keys("inspect")


def test_plans(printed: Printed, source: Path, folders: Path, tmp_path: Path) -> None:
    assert printed.run("plan", source, "--max-shard-size", "50kB")["notes"]
    printed.run("plan", source, "--to", "meta", "--shards", "4")
    printed.run("plan", folders / "rows", "--like", folders / "llama-hf")
    with run_store(tmp_path / "aws") as store:
        store.share(source, "models", "in/")
        assert printed.run("plan", "s3://models/in")["requests"]
    printed.check_keys("plan")


def test_proofs(printed: Printed, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    printed.run("tokenizer", source, tmp_path / "tokenizer")
    printed.check_keys("tokenizer")
    printed.documents.clear()
    printed.run("check", source)
    main(["convert", str(source), str(out), "--quiet"])
    printed._capsys.readouterr()
    printed.run("check", out)
    printed.check_keys("check")
    printed.documents.clear()
    printed.run("manifest", out, tmp_path / "m.json")
    printed.check_keys("manifest")
    printed.documents.clear()
    printed.run("verify", out)
    printed.run("verify", out, "--against", tmp_path / "m.json")
    (out / "config.json").write_text("{}")
    assert printed.run("verify", out, code=1)["differences"]
    printed.check_keys("verify")


def test_signatures(printed: Printed, source: Path, tmp_path: Path) -> None:
    pytest.importorskip("model_signing")
    main(["convert", str(source), str(tmp_path / "out"), "--quiet"])
    printed._capsys.readouterr()
    printed.run("sign", tmp_path / "out", "--key", write_key(tmp_path)[0])
    printed.check_keys("sign")


@pytest.fixture
def served(source: Path, tmp_path: Path) -> Iterator[Files]:
    """Serve a small checkpoint as Meta does."""
    root = tmp_path / "served"
    root.mkdir()
    os.symlink(source, root / "llama-2-13b-chat")
    for name in ("LICENSE", "USE_POLICY.md"):
        (root / name).write_text("words")
    (root / "tokenizer.model").write_bytes((source / "tokenizer.model").read_bytes())
    write_checklist(root)
    (root / "checklist.chk").rename(root / "tokenizer_checklist.chk")
    with serving(Files(root)) as files:
        yield files


def test_downloads(printed: Printed, served: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTCONV_URL", served.url)
    printed.run("download", "--models", "13B-chat", "--to", tmp_path / "in")
    printed.check_keys("download")


def test_uploads(printed: Printed, source: Path, tmp_path: Path) -> None:
    main(["convert", str(source), str(tmp_path / "out"), "--quiet"])
    with serving_hub(Hub()) as hub:
        done = push(hub, tmp_path / "out", "somebody/llama", "--json")
    assert done.returncode == 0, done.stderr
    printed.take("push", done.stdout)
    printed.check_keys("push")
