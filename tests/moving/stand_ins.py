"""Devices to test: the host, torch's CPU in place of a GPU, and a GPU where there is one."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import pytest
import torch

from distconv.layout.dtypes import DType
from distconv.moving import lane_devices, torch_device
from distconv.moving.devices import Finish, HostDevice, Scales
from distconv.moving.pieces import Piece
from distconv.moving.torch_device import TorchDevice
from distconv.verbs import running


class StandIn(TorchDevice):
    """Takes the device's way for the smallest block too."""

    small_bytes = 0

    def __init__(self, name: str = "cpu") -> None:
        """Take torch's CPU, through the code that a GPU runs, or what else is named."""
        super().__init__(name)


class Late(StandIn):
    """Does nothing before it is waited for, as a GPU may: memory that is used again too early shows."""

    def submit(
        self,
        content: memoryview,
        pieces: Sequence[Piece],
        elements: int,
        stored: DType,
        dtype: DType,
        scales: Scales | None = None,
    ) -> Finish:
        """Leave it to the wait, for the slot that the block has now."""
        begun = self._begun

        def finish() -> tuple[memoryview, int]:
            now, self._begun = self._begun, begun
            try:
                return super(Late, self).submit(content, pieces, elements, stored, dtype, scales)()
            finally:
                self._begun = now

        return finish


@cache
def devices() -> tuple[HostDevice | StandIn, ...]:
    """Give every kind of device that there is here, for one block at a time."""
    return HostDevice(), StandIn(), *([StandIn("cuda")] if torch.cuda.is_available() else [])


@contextmanager
def pretended_gpu(kind: type[StandIn] = StandIn) -> Iterator[list[str]]:
    """Have the device ``cuda`` in this process for the block; gives the names of the threads that opened it."""
    opened = []

    class Pretended(kind):  # type: ignore[valid-type,misc]
        def __init__(self, _name: str) -> None:
            opened.append(threading.current_thread().name)
            super().__init__()

    with pytest.MonkeyPatch.context() as patch:
        for module in (lane_devices, running):
            patch.setattr(module, "find_missing_device", lambda _name: None)
        patch.setattr(torch_device, "TorchDevice", Pretended)
        patch.setattr(torch_device, "LOST", threading.Event())
        patch.setattr(lane_devices, "_LANE", lane_devices._Lane())
        yield opened
