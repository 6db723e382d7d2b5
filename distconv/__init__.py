"""Convert Llama models between Meta's layout and Transformers', and what trainers save into a Transformers folder.

The verbs are those of the command line, and give reports: ``str(report)`` for people, ``report.to_json()`` for
programs. What goes wrong is a ``DistconvError``; ``distconv.errors`` has the whole tree. Whoever wants to see how far
along it is gives ``progress=``: ``BarProgress(sys.stderr)``, ``LineProgress(print)``, or what has the methods of
``Progress``; notebooks show a bar by themselves, which ``SilentProgress()`` turns off. Sizes are in bytes, or as "5GB".

Names are imported when they are first used: planning on a laptop needs none of what moving bytes needs.
"""

from distconv.version import VERSION as __version__  # noqa: N811  the one that the build reads too

# Known to type checkers by its name; the module of that name takes its time.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from distconv import errors
    from distconv.errors import (
        ClusterError,
        ConversionError,
        DeviceError,
        DistconvError,
        InputError,
        Interrupted,
        MismatchError,
        OutputError,
        Stopped,
        Terminated,
        UsageError,
    )
    from distconv.moving.progress import Progress, SilentProgress
    from distconv.moving.progress_bar import BarProgress
    from distconv.moving.progress_lines import LineProgress
    from distconv.verbs.check import CheckReport, check
    from distconv.verbs.conversion_report import ConversionReport
    from distconv.verbs.convert import convert
    from distconv.verbs.download import DownloadReport, download
    from distconv.verbs.generate import generate
    from distconv.verbs.inspect import Inspection, inspect
    from distconv.verbs.manifest import ManifestReport, manifest
    from distconv.verbs.plan import PlanReport, plan
    from distconv.verbs.push import PushReport, push
    from distconv.verbs.reports import Report
    from distconv.verbs.sign import SignReport, sign
    from distconv.verbs.tokenizer import TokenizerReport, convert_tokenizer
    from distconv.verbs.verification import Verification
    from distconv.verbs.verify import verify

__all__ = [
    "BarProgress",
    "CheckReport",
    "ClusterError",
    "ConversionError",
    "ConversionReport",
    "DeviceError",
    "DistconvError",
    "DownloadReport",
    "InputError",
    "Inspection",
    "Interrupted",
    "LineProgress",
    "ManifestReport",
    "MismatchError",
    "OutputError",
    "PlanReport",
    "Progress",
    "PushReport",
    "Report",
    "SignReport",
    "SilentProgress",
    "Stopped",
    "Terminated",
    "TokenizerReport",
    "UsageError",
    "Verification",
    "__version__",
    "check",
    "convert",
    "convert_tokenizer",
    "download",
    "errors",
    "generate",
    "inspect",
    "manifest",
    "plan",
    "push",
    "sign",
    "verify",
]

_HOMES = {
    "BarProgress": "moving.progress_bar",
    "CheckReport": "verbs.check",
    "ConversionReport": "verbs.conversion_report",
    "DownloadReport": "verbs.download",
    "Inspection": "verbs.inspect",
    "LineProgress": "moving.progress_lines",
    "ManifestReport": "verbs.manifest",
    "PlanReport": "verbs.plan",
    "Progress": "moving.progress",
    "PushReport": "verbs.push",
    "Report": "verbs.reports",
    "SignReport": "verbs.sign",
    "SilentProgress": "moving.progress",
    "TokenizerReport": "verbs.tokenizer",
    "Verification": "verbs.verification",
    "check": "verbs.check",
    "convert": "verbs.convert",
    "convert_tokenizer": "verbs.tokenizer",
    "download": "verbs.download",
    "generate": "verbs.generate",
    "inspect": "verbs.inspect",
    "manifest": "verbs.manifest",
    "plan": "verbs.plan",
    "push": "verbs.push",
    "sign": "verbs.sign",
    "verify": "verbs.verify",
}
"""Where each name comes from, if not from errors."""


# Type checkers would take any name for one that it gives.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Import a name's module when the name is first asked for."""
        from importlib import import_module

        if name not in __all__:
            message = f"module {__name__!r} has no attribute {name!r}"
            raise AttributeError(message)
        if name == "errors":
            return import_module(f"{__name__}.errors")
        return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'errors')}"), name)

    def __dir__() -> list[str]:
        """Name also what was not asked for yet, for whoever completes names."""
        return sorted({*globals(), *__all__})
