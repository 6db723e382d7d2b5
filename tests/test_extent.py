"""Few cases of a product stand for all of its factors' values."""

from itertools import product
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.extent import LONGEST, TOGETHER, one_of_each


@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_each_value_of_each_factor_is_in_a_case_and_few_cases_are_taken(
    sizes: list[int], random: object
) -> None:
    cases = [tuple(map(str, case)) for case in product(*map(range, sizes))]
    random.shuffle(cases)  # type: ignore[attr-defined]
    chosen = [cases[place] for place in one_of_each(cases)]
    for factor, size in enumerate(sizes):
        assert {case[factor] for case in chosen} == set(map(str, range(size)))
    assert len(chosen) <= sum(sizes)


@given(st.lists(st.tuples(st.text("ab", max_size=1), st.text("ab", max_size=1)), max_size=6))
def test_cases_that_are_there_suffice_for_what_is_missing_of_a_product(cases: list[tuple[str, str]]) -> None:
    chosen = [cases[place] for place in one_of_each(cases)]
    for factor in range(2):
        assert {case[factor] for case in chosen} == {case[factor] for case in cases}


SUITE = """
import pytest

@pytest.mark.product
@pytest.mark.parametrize("fast", [1, 2, 3])
@pytest.mark.parametrize(("one", "other"), [(1, 2), (2, 1), pytest.param(0, 0, marks=pytest.mark.slow)])
def test_some(one, other, fast):
    assert one != other

@pytest.mark.first(2)
@pytest.mark.parametrize("one", [pytest.param(0, marks=pytest.mark.slow), 1, 2, 3, 4])
def test_first(one):
    assert one
"""


def test_the_default_suite_takes_few_of_a_product_or_the_first_and_all_are_there(tmp_path: Path) -> None:
    few, every = collect(tmp_path, "not slow"), collect(tmp_path, "")
    assert [len([name for name in found if "::test_some[" in name]) for found in (few, every)] == [3, 9]
    assert [name for name in few if "::test_first[" in name] == [
        f"test_some.py::test_first[{n}]" for n in (1, 2)
    ]
    assert len(every) == 9 + 5


def collect(folder: Path, marks: str) -> list[str]:
    """Give the tests of a file that are collected with the hooks of this suite."""
    from tests import conftest

    found: list[str] = []

    class Take:
        """Takes what is left when all hooks have chosen."""

        pytest_collection_modifyitems = staticmethod(conftest.pytest_collection_modifyitems)

        def pytest_collection_finish(self, session: pytest.Session) -> None:
            found.extend(item.nodeid for item in session.items)

    (folder / "test_some.py").write_text(SUITE)
    options = [
        "--collect-only",
        "-q",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        f"--rootdir={folder}",
    ]
    pytest.main([*options, "-W", "ignore", "-m", marks, str(folder)], plugins=[Take()])
    return found


def test_files_that_share_what_they_make_are_one_process_s_and_others_go_one_by_one() -> None:
    from tests import conftest

    config = mock.Mock()
    config.getvalue = {"dist": "loadfile", "tx": ["2*popen"]}.get
    scope = conftest.pytest_xdist_make_scheduler(config, None)._split_scope  # type: ignore[attr-defined]
    scopes = [{scope(f"tests/{name}::test_{name}") for name in files} for files in TOGETHER]
    assert [len(found) for found in scopes] == [1] * len(TOGETHER)
    assert len(set().union(*scopes)) == len(TOGETHER)
    assert scope("tests/test_cli.py::test_one[case]") == "tests/test_cli.py"


def test_the_longest_files_are_there() -> None:
    here = Path(__file__).parent
    assert [name for name in LONGEST if not (here / name).is_file()] == []
