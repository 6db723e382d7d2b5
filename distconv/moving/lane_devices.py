"""The device of each lane: what its memory and its streams cost is paid once, not for each unit."""

import importlib
import socket
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from distconv.errors import ConversionError
from distconv.moving.devices import Device, HostDevice


class _Lane(threading.local):
    """What one thread has opened, and does not use at present."""

    def __init__(self) -> None:
        self.idle: dict[str, list[Device]] = {}


_LANE = _Lane()


@contextmanager
def lane_device(name: str) -> Iterator[Device]:
    """Have the calling thread's ``cpu`` or ``cuda`` for one unit.

    Who has lost the GPU goes on with the CPU. ConversionError where there is none; DeviceError where it has no
    memory left.
    """
    name = "cpu" if name == "cpu" or _is_lost() else name
    idle = _LANE.idle.setdefault(name, [])
    device = idle.pop() if idle else _open(name)
    yield device
    # Not where something was raised: blocks may still be on their way, and their memory would be used again.
    idle.append(device)


def _is_lost() -> bool:
    from distconv.moving.torch_device import LOST

    return LOST.is_set()


def _open(name: str) -> Device:
    if name == "cpu":
        return HostDevice()
    from distconv.moving.torch_device import TorchDevice

    if (missing := find_missing_device(name)) is not None:
        raise ConversionError(f"{socket.gethostname()}: {missing}")
    return TorchDevice(name)


def load_device(name: str) -> None:
    """Import what a device computes with, for those who can do so before the first block waits for it."""
    importlib.import_module("numpy" if name == "cpu" else "distconv.moving.torch_device")


def find_missing_device(name: str) -> str | None:
    """Tell why a device cannot be used on this host, if so."""
    if name == "cpu":
        return None
    import torch

    with warnings.catch_warnings():
        # A driver that is too old is warned of here, and said below.
        warnings.simplefilter("ignore")
        if torch.cuda.is_available():
            return None
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (AssertionError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0].partition(". ")[0]
    else:
        reason = "no device"
    return f"device {name}: torch sees no GPU here ({reason}); use `device='cpu'`"
