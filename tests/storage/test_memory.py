"""Memory that a thread gives back serves it again, and nobody else."""

import threading
from collections.abc import Callable

from distconv.storage import memory
from distconv.storage.memory import HUGE_PAGE_BYTES, give_back, take_buffer

SIZE = 2 * HUGE_PAGE_BYTES


def in_a_thread(work: Callable[[], object]) -> None:
    """Run in a thread of its own, which has kept nothing."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)
            raise

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert not failures


def test_what_was_given_back_is_taken_again_by_the_same_thread_where_the_size_fits() -> None:
    def work() -> None:
        first = take_buffer(SIZE)
        first[:4] = b"used"
        give_back(first)
        assert bytes(take_buffer(SIZE + 1)[:4]) == bytes(4)
        again = take_buffer(SIZE)
        assert bytes(again[:4]) == b"used"
        assert bytes(take_buffer(SIZE)[:4]) == bytes(4)
        give_back(again)
        in_a_thread(lambda: take_buffer(SIZE)[:4] == bytes(4) or 1 / 0)

    in_a_thread(work)


def test_little_is_kept_and_nothing_small() -> None:
    def work() -> None:
        for _ in range(2 * memory._MOST_KEPT):
            give_back(memory.make_buffer(SIZE))
        give_back(memory.make_buffer(10))
        assert [len(one) for one in memory._KEPT.buffers] == [SIZE] * memory._MOST_KEPT

    in_a_thread(work)
