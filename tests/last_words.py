"""Say in which test a suite ended that was killed: by the system for its memory, by a time limit, by Ray.

Whoever is killed can say nothing, so a process of its own is told what runs, and speaks when its pipe
breaks before the end was told.
"""

import subprocess
import sys

_LISTEN = """
import sys

running = "before the first test"
for line in sys.stdin:
    if line == "end\\n":
        break
    running = "in " + line.strip()
else:
    sys.stderr.write(f"\\nThe suite was killed {running}.\\n")
"""


class LastWords:
    """A plugin; made while pytest does not capture, so that what is said is seen."""

    def __init__(self) -> None:
        """Start the process that listens, out of reach of what ends this one's group."""
        command = [sys.executable, "-S", "-c", _LISTEN]
        self._listener = subprocess.Popen(
            command, stdin=subprocess.PIPE, text=True, bufsize=1, start_new_session=True
        )

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Tell which test begins."""
        self._tell(nodeid)

    def pytest_sessionfinish(self) -> None:
        """Tell that the last test has ended."""
        self._tell("the end, after the last test")

    def pytest_unconfigure(self) -> None:
        """Tell that the suite ends by itself."""
        self._tell("end")
        self._listener.communicate()

    def _tell(self, words: str) -> None:
        if self._listener.stdin is not None:
            self._listener.stdin.write(words + "\n")
