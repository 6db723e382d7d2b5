"""Convert Meta's original Llama checkpoints to Transformers folders.

The verbs are those of the command line. They are imported when they are first used: planning
on a laptop needs none of what moving bytes needs.
"""

# Known to type checkers by its name; the module of that name takes its time.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from distconv.checking import CheckReport, check
    from distconv.conversion import ConversionReport, convert
    from distconv.downloading import DownloadReport, download
    from distconv.pushing import PushReport, push
    from distconv.speaking import generate
    from distconv.survey import Inspection, PlanReport, inspect, plan
    from distconv.tokenization import TokenizerReport, convert_tokenizer
    from distconv.verification import Verification, verify

__all__ = [
    "CheckReport",
    "ConversionReport",
    "DownloadReport",
    "Inspection",
    "PlanReport",
    "PushReport",
    "TokenizerReport",
    "Verification",
    "check",
    "convert",
    "convert_tokenizer",
    "download",
    "generate",
    "inspect",
    "plan",
    "push",
    "verify",
]

_HOMES = {
    "CheckReport": "checking",
    "check": "checking",
    "ConversionReport": "conversion",
    "convert": "conversion",
    "DownloadReport": "downloading",
    "download": "downloading",
    "Inspection": "survey",
    "PlanReport": "survey",
    "inspect": "survey",
    "plan": "survey",
    "PushReport": "pushing",
    "push": "pushing",
    "generate": "speaking",
    "TokenizerReport": "tokenization",
    "convert_tokenizer": "tokenization",
    "Verification": "verification",
    "verify": "verification",
}


def __getattr__(name: str) -> object:
    """Import a verb's module when the verb is first asked for."""
    from importlib import import_module

    if name not in _HOMES:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
