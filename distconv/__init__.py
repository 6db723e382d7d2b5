"""Convert Llama models between Meta's original checkpoints and Transformers folders.

The verbs are those of the command line. They are imported when they are first used: planning
on a laptop needs none of what moving bytes needs.
"""

# Known to type checkers by its name; the module of that name takes its time.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from distconv.verbs.check import CheckReport, check
    from distconv.verbs.conversion_report import ConversionReport
    from distconv.verbs.convert import convert
    from distconv.verbs.download import DownloadReport, download
    from distconv.verbs.generate import generate
    from distconv.verbs.inspect import Inspection, inspect
    from distconv.verbs.manifest import ManifestReport, manifest
    from distconv.verbs.plan import PlanReport, plan
    from distconv.verbs.push import PushReport, push
    from distconv.verbs.sign import SignReport, sign
    from distconv.verbs.tokenizer import TokenizerReport, convert_tokenizer
    from distconv.verbs.verification import Verification
    from distconv.verbs.verify import verify

__all__ = [
    "CheckReport",
    "ConversionReport",
    "DownloadReport",
    "Inspection",
    "ManifestReport",
    "PlanReport",
    "PushReport",
    "SignReport",
    "TokenizerReport",
    "Verification",
    "check",
    "convert",
    "convert_tokenizer",
    "download",
    "generate",
    "inspect",
    "manifest",
    "plan",
    "push",
    "sign",
    "verify",
]

_HOMES = {
    "CheckReport": "verbs.check",
    "check": "verbs.check",
    "ConversionReport": "verbs.conversion_report",
    "convert": "verbs.convert",
    "DownloadReport": "verbs.download",
    "download": "verbs.download",
    "Inspection": "verbs.inspect",
    "ManifestReport": "verbs.manifest",
    "manifest": "verbs.manifest",
    "PlanReport": "verbs.plan",
    "inspect": "verbs.inspect",
    "plan": "verbs.plan",
    "PushReport": "verbs.push",
    "push": "verbs.push",
    "generate": "verbs.generate",
    "SignReport": "verbs.sign",
    "sign": "verbs.sign",
    "TokenizerReport": "verbs.tokenizer",
    "convert_tokenizer": "verbs.tokenizer",
    "Verification": "verbs.verification",
    "verify": "verbs.verify",
}


def __getattr__(name: str) -> object:
    """Import a verb's module when the verb is first asked for."""
    from importlib import import_module

    if name not in _HOMES:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
