"""What Transformers is asked, a process of its own answers: the same, out of the way, and no longer than somebody waits."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from distconv.errors import ConversionError, InputError
from distconv.sidecars import apart
from distconv.sidecars.architecture import read_architecture
from distconv.sidecars.empty import read_empty_model
from distconv.storage.local import LocalStorage

ROOT = Path(__file__).parents[2]
KINDS = {"llama": "LlamaForCausalLM", "qwen3_moe": "Qwen3MoeForCausalLM"}
SIZES = {
    "hidden_size": 16, "intermediate_size": 32, "vocab_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "moe_intermediate_size": 4, "num_experts": 3, "num_experts_per_tok": 2,
}  # fmt: skip
SHAPES = {"lm_head.weight": (64, 16), **{str(number): (64, 16) for number in range(40)}}
ASK = """
import sys
from distconv.sidecars import apart
if len(sys.argv) > 1:
    apart._MODULE = sys.argv[1]
apart.ask("config.json", apart.make_question("saves", {"model_type": "llama"}, {}, 4096))
assert not {"numpy", "torch", "transformers"} & set(sys.modules)
"""

LEAN = """
import sys
from distconv.sidecars.lean_torch import leave_out_of_torch
from distconv.sidecars.looks import look
leave_out_of_torch()
assert "saved" in look("saves", {"model_type": "llama", "num_hidden_layers": 2}, {}, 4096)
assert not {"torch._dynamo.convert_frame", "torch.distributed.tensor"} & set(sys.modules)
import torch
assert "eager" in torch._dynamo.list_backends(())
assert "torch._dynamo.convert_frame" in sys.modules
"""


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let it look as if this process had not imported Transformers."""
    monkeypatch.delitem(sys.modules, "transformers")


def write_config(folder: Path, **changes: object) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(SIZES | changes))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("kind", [pytest.param("llama", marks=pytest.mark.slow), "qwen3_moe"])
def test_the_answer_is_that_of_this_process_and_nothing_is_imported_from_the_folder_in_which_it_is_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
) -> None:
    path = write_config(tmp_path, model_type=kind, architectures=[KINDS[kind]])

    def look() -> tuple[object, object]:
        taken = read_empty_model(LocalStorage(), str(path), SHAPES)
        return read_architecture(str(path), json.loads(path.read_text()), SHAPES), taken

    here = look()
    # An answer is kept by the path of the config.
    path = path.rename(tmp_path / "other.json")
    monkeypatch.delitem(sys.modules, "transformers")
    (tmp_path / "torch.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    assert look() == here
    assert not (tmp_path / "ran").exists()
    assert "transformers" not in sys.modules


def test_a_package_that_is_found_by_the_folder_in_which_one_is_asks_no_other_one(tmp_path: Path) -> None:
    for name in ("__init__", "version", "errors", "sidecars/__init__", "sidecars/apart"):
        path = tmp_path / f"distconv/{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / f"distconv/{name}.py", path)
    (tmp_path / "distconv/sidecars/looks.py").write_text("""print('{"refused": "asked of this one"}')""")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", ASK],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "asked of this one" in done.stderr, done.stderr


def test_a_folder_that_is_gone_keeps_no_answer_back(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    program = f"import os; os.chdir({str(gone)!r}); os.rmdir({str(gone)!r})\n{ASK}"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-P", "-c", f"import sys; sys.path.append('a hook')\n{program}"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("alone")
def test_what_is_wrong_with_a_config_is_said_as_in_this_process(tmp_path: Path) -> None:
    path = write_config(tmp_path, model_type="nobody's")
    with pytest.raises(
        InputError, match=r"config.json: no model can be made of it \(ValueError: model_type .* is unknown"
    ):
        read_empty_model(LocalStorage(), str(path), SHAPES)


@pytest.mark.usefixtures("alone")
def test_a_process_that_ends_without_an_answer_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_config(tmp_path, model_type="llama")
    monkeypatch.setattr(apart, "_MODULE", "distconv.nothing")
    with pytest.raises(
        ConversionError, match=r"config.json: the process .* ended with 1 \(.*No module named"
    ):
        read_empty_model(LocalStorage(), str(path), SHAPES)
    (tmp_path / "killed.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(apart, "_MODULE", "killed")
    with pytest.raises(ConversionError, match=r"was ended by SIGKILL; where memory is short"):
        read_empty_model(LocalStorage(), str(path), SHAPES)


@pytest.mark.first(1)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_it_ends_with_whoever_waits_for_it(number: signal.Signals) -> None:
    asker = subprocess.Popen([sys.executable, "-c", ASK], stderr=subprocess.DEVNULL)
    process = psutil.Process(asker.pid)
    while not (children := process.children()):
        assert asker.poll() is None
    asker.send_signal(number)
    assert asker.wait(timeout=60) != 0
    _gone, alive = psutil.wait_procs(children, timeout=60)
    assert not alive


@contextlib.contextmanager
def start() -> Iterator[tuple[apart.Answerer, psutil.Process]]:
    """Start what answers, and give its process as well."""
    before = set(psutil.Process().children())
    with apart.start_answerer() as answerer:
        (process,) = set(psutil.Process().children()) - before
        yield answerer, process


@pytest.mark.parametrize("reason", [None, KeyboardInterrupt()])
def test_one_that_was_started_and_is_asked_nothing_has_ended(reason: BaseException | None) -> None:
    with contextlib.suppress(KeyboardInterrupt), start() as (_answerer, process):
        if reason is not None:
            raise reason
    assert not process.is_running()


def test_one_that_has_ended_before_it_is_asked_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apart, "_MODULE", "distconv.nothing")
    with start() as (answerer, process):
        while process.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        with pytest.raises(ConversionError, match=r"config.json: the process .* ended with 1 \(.*No module"):
            answerer.answer("config.json", "[]")


@pytest.mark.parametrize("is_asked_first", [True, False])
def test_one_whose_libraries_cannot_be_imported_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_asked_first: bool
) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('undefined symbol: x')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with start() as (answerer, process):
        while not is_asked_first and process.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        with pytest.raises(ConversionError, match=r"ended with 1 \(ImportError: undefined symbol: x\)"):
            answerer.answer("config.json", "[]")


@pytest.mark.slow
@pytest.mark.usefixtures("alone")
def test_one_that_is_started_beforehand_answers_the_same() -> None:
    question = apart.make_question("saves", SIZES | {"model_type": "llama"}, SHAPES, 4096)
    with start() as (answerer, process):
        answer = apart.ask("config.json", question, answerer)
    assert not process.is_running()
    assert answer == apart.ask("config.json", question)


def test_whoever_asks_imports_nothing_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "answering.py").write_text("print('{}')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    subprocess.run([sys.executable, "-c", ASK, "answering"], check=True)


@pytest.mark.slow
def test_neither_torchs_compiler_nor_its_distributed_tensors_are_imported_unless_asked_for() -> None:
    subprocess.run([sys.executable, "-c", LEAN], check=True)
