"""The numbers of params.json from which Llama 4's code computes the sizes of its feed-forward layers."""

from collections.abc import Iterator
from dataclasses import dataclass

from distconv.families.dimensions import Llama4Dimensions
from distconv.families.images import IMAGE_FAMILIES
from distconv.formats.meta.params import compute_ffn_dim
from distconv.sidecars.meta_params import list_ffn_pairs

_PUBLISHED_PAIRS = ((2048, 1.2), (2048, 0.6))
"""``multiple_of`` and ``ffn_dim_multiplier`` of Llama 4, and of Llama Guard 4."""
_FFN_EXP = 4.0


@dataclass(frozen=True, slots=True)
class ExpertFormula:
    """Fields of params.json."""

    multiple_of: int
    multiplier: float
    ffn_exp: float = _FFN_EXP
    halved: bool = True
    """``auto_scale_F``: experts are half as large, as each token sees two."""

    def expert_size(self, dim: int) -> int:
        """Give the size of an expert (``llama4/moe.py``, class ``MoE``)."""
        size = int(self.multiplier * int(2 * int(self.ffn_exp * dim) / 3))
        size = int(size / 2) if self.halved else size
        return -(-size // self.multiple_of) * self.multiple_of


def find_expert_formula(sizes: Llama4Dimensions) -> ExpertFormula | None:
    """Find the numbers that give the sizes of dense layers, experts, or both: published ones first.

    None where no numbers give both: of sizes that no power of two divides, some pairs have none.
    """
    return next(_list_formulas(sizes), None)


def _list_formulas(sizes: Llama4Dimensions) -> Iterator[ExpertFormula]:
    dim, dense, expert = sizes.dim, sizes.ffn_dim, sizes.expert_ffn_dim
    for multiple_of, multiplier in _list_pairs(dim, dense, expert):
        if dense and compute_ffn_dim(dim, multiple_of, multiplier) != dense:
            continue
        published = ExpertFormula(multiple_of, multiplier or 1.0)
        if not expert:
            yield published
            continue
        yield from (
            formula
            for formula in (published, *_list_exponents(published, dim, expert))
            if formula.expert_size(dim) == expert
        )


def _list_pairs(dim: int, dense: int, expert: int) -> Iterator[tuple[int, float | None]]:
    """Give ``multiple_of`` and ``ffn_dim_multiplier`` that may give both sizes."""
    yield from _PUBLISHED_PAIRS
    # A dense layer of twice an expert's size takes the same numbers, where there is none.
    wanted = dense or 2 * expert
    yield from list_ffn_pairs(dim, wanted, IMAGE_FAMILIES["llama-4"])
    # Both are multiples of this.
    shared = (wanted | expert) & -(wanted | expert)
    middle = (wanted + 1 - shared / 2) / compute_ffn_dim(dim, 1, None)
    yield from ((shared, round(middle, digits)) for digits in range(1, 18))


def _list_exponents(formula: ExpertFormula, dim: int, expert: int) -> Iterator[ExpertFormula]:
    """Give formulas with the ``ffn_exp`` of fewest digits that may give an expert's size."""
    multiple_of, multiplier = formula.multiple_of, formula.multiplier
    # From the first number of elements whose size is rounded up to the expert's to the last one.
    first, last = (int((expert - less) * 1.5 / multiplier) for less in (multiple_of, 0))
    steps = range(first, last + 4, max(1, (last - first) // _MOST_STEPS))
    for digits in range(1, 18):
        for hidden in steps:
            yield ExpertFormula(multiple_of, multiplier, round((hidden + 0.5) / dim, digits), halved=False)


_MOST_STEPS = 8
