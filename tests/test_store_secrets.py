"""Credentials are shown to nobody: not in what is said or written, nor to who lists processes, nor in Ray's logs."""

import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("botocore", reason="needs the extra s3")

from tests.benchmarks.measure import tree
from tests.checkpoints import Spec
from tests.object_store import SECOND_ACCESS_KEY, SECOND_SECRET_KEY, Fault, start
from tests.patience import HANG_SECONDS
from tests.stored import StoredPath, use_store
from tests.test_stores import SPEC, command, share

Write = Callable[[Spec], Path]
TOKEN = "aSessionToken/that+nobody+sees"
SIGNATURES = ("Signature=", "X-Amz-Signature", "Credential=")


@pytest.mark.slow
def test_no_secret_is_in_anything_that_a_conversion_shows_or_leaves(
    checkpoint: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Ray wants a short path for its sockets.
    with (
        start("models") as store,
        tempfile.TemporaryDirectory(prefix="ray-", dir="/dev/shm") as sessions,
    ):
        use_store(monkeypatch, store, tmp_path)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", SECOND_ACCESS_KEY)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECOND_SECRET_KEY)
        monkeypatch.setenv("AWS_SESSION_TOKEN", TOKEN)
        monkeypatch.setenv("RAY_TMPDIR", sessions)
        place = StoredPath(store, "models", "place")
        source, output = share(checkpoint(SPEC), place / "in"), place / "out"
        # Something fails as well, and is told of.
        store.fault(Fault("error", "UploadPart", f"models/{output.key}/model-00002*", code="AccessDenied"))
        store.fault(Fault("hold", "UploadPart", f"models/{output.key}/model-*", gate="held"))
        options = ("--trace", str(tmp_path / "trace.json"), "--debug")
        words = command(source, output, "--workers", "1", *options)
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            try:
                store.wait_held("held", limit_s=HANG_SECONDS)
                shown = [
                    Path(f"/proc/{pid}/cmdline").read_bytes() for pid in tree(process.pid) if is_there(pid)
                ]
                # Before anything else is made, the journal and the owner's file stand there.
                shown += [path.read_bytes() for path in output.iterdir()]
                assert len(shown) > 4
                store.release("held")
                shown += process.communicate()
            finally:
                process.kill()
        assert b"AccessDenied" in shown[-1]
        ended = subprocess.run(command(source, output, *options), capture_output=True, check=False)
        assert ended.returncode == 0, ended.stderr
        shown += [ended.stdout, ended.stderr, (tmp_path / "trace.json").read_bytes()]
        shown += [path.read_bytes() for path in output.iterdir() if not path.name.endswith(".safetensors")]
        logs = [path for path in Path(sessions).rglob("*") if path.is_file()]
        assert any("worker" in path.name for path in logs)
        shown += [path.read_bytes() for path in logs]
        for secret in (SECOND_SECRET_KEY, TOKEN, *SIGNATURES):
            assert not [text[:200] for text in shown if secret.encode() in text], secret


def is_there(pid: int) -> bool:
    """Whether a process can be looked at."""
    return os.access(f"/proc/{pid}/cmdline", os.R_OK)
