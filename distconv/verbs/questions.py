"""What only data can tell of INPUT: workers look, unless an earlier run has told."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from distconv.families.translate import Decisions
from distconv.formats.views import TensorView
from distconv.layout.files import OutputTensor
from distconv.layout.units import Pair, Question, Unit, split_question
from distconv.moving.compare import target_of_view
from distconv.moving.job import Receipt

Ask = Callable[[Sequence[Unit]], Sequence[Receipt]]
"""Has questions answered, and gives the answers in their order."""


class Answers(Protocol):
    """Answers the questions on which a plan depends."""

    def are_tied(self, embedding: OutputTensor, output: OutputTensor) -> bool:
        """Whether embedding and output, each brought together from all shards, are equal."""

    def are_stored(self, times: int, pairs: Sequence[tuple[TensorView, TensorView]]) -> bool:
        """Whether each key head is stored so often, which is so where these pairs are equal."""


@dataclass(frozen=True, slots=True)
class Known:
    """What was decided by the answers that an earlier run of the same conversion was given."""

    decisions: Decisions

    def are_tied(self, embedding: OutputTensor, output: OutputTensor) -> bool:  # noqa: ARG002  nobody looks
        """Tell what it decided."""
        return self.decisions.tied

    def are_stored(self, times: int, pairs: Sequence[tuple[TensorView, TensorView]]) -> bool:  # noqa: ARG002  nobody looks
        """Tell what it decided: it asked for multiples of what it was told of before."""
        return self.decisions.kv_replication % times == 0


@dataclass(frozen=True, slots=True)
class Asked:
    """What is answered by comparing INPUT's bytes."""

    ask: Ask

    def are_tied(self, embedding: OutputTensor, output: OutputTensor) -> bool:
        """Compare them."""
        return self.are_equal("embedding and output", [(embedding, output)])

    def are_stored(self, times: int, pairs: Sequence[tuple[TensorView, TensorView]]) -> bool:
        """Compare the pairs."""
        targets = [(target_of_view(left), target_of_view(right)) for left, right in pairs]
        return self.are_equal(f"key heads stored {times} times", targets)

    def are_equal(self, name: str, pairs: Sequence[Pair]) -> bool:
        """Compare tensors of INPUT, whatever they are."""
        return all(receipt.equal for receipt in self.ask(split_question(Question(name, tuple(pairs)))))
