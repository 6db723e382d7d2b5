"""mutmut's command ``run``, with one pytest for all mutants: each is a fork of it that has collected the tests.

``python -P tests/mutant_runs.py --max-children 2`` where ``mutmut run`` would stand. Starting pytest and collecting
took most of the time of a mutant that a quick test notices; a mutant that never ends took a minute and more.
"""

import os
import resource
import shutil
import sys
import tempfile
from collections.abc import Iterable
from itertools import pairwise
from math import ceil
from pathlib import Path
from time import process_time
from unittest import mock

import mutmut.__main__
import pytest
from mutmut.runners.harness import PytestRunner
from mutmut.state import state
from mutmut.utils.file_utils import change_cwd
from mutmut.utils.format_utils import mangled_name_from_mutant_name
from mutmut.workers.isolation import ForkServerRunner

SECONDS = 5  # a test has these, of the processor's time, and five times what it takes without a mutant
WAITING_SECONDS = 15  # as these, for a test that waits; the machine may be busy


class Runs(PytestRunner):
    """Runs a mutant's tests in the session of pytest that this process was forked in the middle of."""

    session: pytest.Session

    def warm_up(self) -> None:
        """Only keep the file that output goes to: the session is there, and would take its end for a finding."""
        self.opened: list[object] = [sys.stdout]
        self.noticed = Path(tempfile.mkdtemp())

    def run_tests(self, *, mutant_name: str | None, tests: Iterable[str]) -> int:
        """Give 1 at the first test that fails, else 0; temporary files are removed.

        The tests that noticed others of the same function come first: mostly they notice this one too.
        """
        self.opened.append(sys.stdout)
        wanted = set(tests)
        before = self.noticed / mangled_name_from_mutant_name(str(mutant_name))
        others = before.read_text().splitlines() if before.exists() else []
        items = [item for item in self.session.items if item.nodeid in wanted]
        items.sort(key=lambda item: item.nodeid not in others)
        folder = os.environ["TMPDIR"] = tempfile.tempdir = tempfile.mkdtemp()
        try:
            for item, following in pairwise([*items, None]):
                _limit(item)
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
                if self.session.testsfailed:
                    if item.nodeid not in others:
                        before.write_text("\n".join([*others, item.nodeid]))
                    return 1
        except pytest.fail.Exception:
            # Its time was up between two tests. It is no Exception, and passed on would end what serves all mutants.
            return 1
        else:
            return 0
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _limit(item: pytest.Item) -> None:
    usual = 5 * state().duration_by_test[item.nodeid]
    item.add_marker(pytest.mark.timeout(WAITING_SECONDS + usual), append=False)
    _soft, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (min(ceil(process_time() + SECONDS + usual), hard), hard))


class Server(ForkServerRunner):
    """Forks from within a session of pytest."""

    clean = False

    def collect_stats(self, tests: Iterable[str] | None) -> int:
        """Collect them, which shows as well whether the tests pass without a mutant."""
        code = super().collect_stats(tests)
        self.clean = not tests and not code
        return code

    def run_clean_tests(self, tests: Iterable[str]) -> int:
        """Run them unless that was just done."""
        return 0 if self.clean else super().run_clean_tests(tests)

    def _forkserver_main(self, work_fd: int, result_fd: int) -> None:
        serve = super()._forkserver_main
        self.test_runner_class = Runs

        class Loop:
            @pytest.hookimpl(tryfirst=True)
            def pytest_runtestloop(self, session: pytest.Session) -> bool:
                Runs.session = session
                serve(work_fd, result_fd)
                return True

        runner = PytestRunner()
        with change_cwd("mutants"):
            runner.execute_pytest(["-q", *runner._pytest_add_cli_args_test_selection], plugins=[Loop()])


def make_server(max_workers: int) -> Server:
    """Give what tests this many mutants at a time."""
    return Server(max_workers, PytestRunner, {})


if __name__ == "__main__":
    with mock.patch.object(mutmut.__main__, "get_mutant_runner", make_server):
        mutmut.__main__.run()
