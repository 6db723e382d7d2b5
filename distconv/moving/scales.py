"""The scales of a block, as they are read and proved to be numbers that a weight can be multiplied by."""

from distconv.errors import InputError
from distconv.layout.files import OutputTensor
from distconv.moving.bands import Block
from distconv.moving.devices import Scales
from distconv.moving.sources import Sources


def read_scales(tensor: OutputTensor, block: Block, sources: Sources) -> Scales | None:
    """Read what a block's elements are multiplied by; None where they are not.

    InputError where that is not a positive, finite number.
    """
    if tensor.scale is None:
        return None
    dtype = tensor.scale.dtype
    scales = Scales(sources.read_scales(block.scales, dtype.size_bytes), block.scales, dtype)
    _check(tensor, scales)
    return scales


def _check(tensor: OutputTensor, scales: Scales) -> None:
    import numpy as np

    unit, start = scales.dtype.size_bytes, 0
    for piece in scales.pieces:
        # Each of them once, however many elements it is for.
        loops = [loop for loop in zip(piece.extents, piece.source_strides, strict=True) if loop[1]]
        extents, strides = [extent for extent, _ in loops], [unit * stride for _, stride in loops]
        found = np.ndarray(extents, np.dtype(f"f{unit}"), scales.content, start * unit, strides)
        good = (found > 0) & (found < np.inf)
        if not good.all():
            raise InputError(
                f"{piece.region.path}: the scale of {tensor.source} is {found[~good].flat[0]:g} for some of its rows, "
                "expected positive numbers; the file is damaged: download it again"
            )
        start += piece.span
