"""Files that several workers write: begun before them, sealed and committed after the last part."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Self

from distconv.layout.files import File, Part, Unit
from distconv.moving.digests import ChunkDigests
from distconv.moving.executor import Keep
from distconv.moving.worker import Job, Receipt, publish, write_literals
from distconv.storage.base import Storage, Writer, join


@dataclass(slots=True)
class _Begun:
    """One file, and what is known of its parts by their numbers."""

    file: File
    writer: Writer
    parts: dict[int, Receipt] = field(default_factory=dict)


class SharedFiles:
    """The files of which parts are units; every one that is not committed is removed at the end."""

    def __init__(self, storage: Storage, output: str, files: Sequence[File], units: Sequence[Unit]) -> None:
        """Begin each file that has parts, at its full size: a full disk shows before anything is moved."""
        self._parts = {unit.name: unit for unit in units if isinstance(unit, Part)}
        shared = {part.file for part in self._parts.values()}
        self._begun: dict[str, _Begun] = {}
        with ExitStack() as stack:
            for file in files:
                if file.name in shared:
                    writer = storage.begin(join(output, file.name), file.size_bytes)
                    stack.callback(writer.abort)
                    write_literals(file.literals, writer)
                    self._begun[file.name] = _Begun(file, writer)
            self._aborts = stack.pop_all()

    @property
    def attempts(self) -> dict[str, str]:
        """What the files are open as, for ``Job``."""
        return {name: begun.writer.attempt for name, begun in self._begun.items()}

    def __enter__(self) -> Self:
        """Use it in a ``with`` block."""
        return self

    def __exit__(self, *_exception: object) -> None:
        """Remove what was not committed."""
        self._aborts.close()

    def keep(self, job: Job, keep: Keep) -> Callable[[Receipt], None]:
        """Give what a run tells its receipts: ``keep`` hears of whole files only."""

        def hear(receipt: Receipt) -> None:
            part = self._parts.get(receipt.chunk)
            if part is None:
                keep(receipt)
                return
            begun = self._begun[part.file]
            begun.parts[part.number] = receipt
            if len(begun.parts) == part.count:
                keep(self._finish(job, begun))

        return hear

    def _finish(self, job: Job, begun: _Begun) -> Receipt:
        """Seal and commit a file whose parts are all there."""
        parts = [begun.parts[number] for number in sorted(begun.parts)]
        checksums = [checksum for part in parts for checksum in part.checksums]
        if begun.file.seal is not None:
            write_literals(begun.file.seal.make(checksums), begun.writer)
        digests = ChunkDigests(None, tuple(digest for part in parts for digest in part.digests.tensors))
        publish(job, begun.file, begun.writer, digests, lambda: False)
        return Receipt(begun.file.name, digests, 0, begun.file.size_bytes)
