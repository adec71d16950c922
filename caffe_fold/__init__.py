"""Folds BatchNorm, Scale, Bias and Power layers of Caffe nets, exactly.

>>> import caffe_fold
>>> report = caffe_fold.fold("deploy.prototxt", "net.caffemodel")  # doctest: +SKIP
>>> print(report.to_text())  # doctest: +SKIP

``fold`` reads a net and writes a folded one; ``fold_weights`` is the arithmetic on
arrays. Names are loaded when they are first used, so that importing costs nothing.
"""

from caffe_fold._version import __version__

# Not that of typing: to import it takes longer than all that is done here.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from caffe_fold.arrays import fold_weights as fold_weights
    from caffe_fold.convert import fold as fold
    from caffe_fold.errors import CaffeFoldError as CaffeFoldError
    from caffe_fold.errors import CaffemodelError as CaffemodelError
    from caffe_fold.errors import CheckError as CheckError
    from caffe_fold.errors import EngineMissing as EngineMissing
    from caffe_fold.errors import ExtraMissing as ExtraMissing
    from caffe_fold.errors import InputError as InputError
    from caffe_fold.errors import OutputError as OutputError
    from caffe_fold.errors import PrototxtError as PrototxtError
    from caffe_fold.errors import VerifyError as VerifyError
    from caffe_fold.inspection.inspect import inspect as inspect
    from caffe_fold.inspection.inspection import Inspection as Inspection
    from caffe_fold.report import Report as Report
    from caffe_fold.verification.result import Verification as Verification
    from caffe_fold.verification.run import verify as verify

_HOMES = {
    "fold": "caffe_fold.convert",
    "fold_weights": "caffe_fold.arrays",
    "inspect": "caffe_fold.inspection.inspect",
    "Inspection": "caffe_fold.inspection.inspection",
    "Report": "caffe_fold.report",
    "verify": "caffe_fold.verification.run",
    "Verification": "caffe_fold.verification.result",
    "CaffeFoldError": "caffe_fold.errors",
    "InputError": "caffe_fold.errors",
    "PrototxtError": "caffe_fold.errors",
    "CaffemodelError": "caffe_fold.errors",
    "OutputError": "caffe_fold.errors",
    "CheckError": "caffe_fold.errors",
    "VerifyError": "caffe_fold.errors",
    "EngineMissing": "caffe_fold.errors",
    "ExtraMissing": "caffe_fold.errors",
}

__all__ = ["__version__", *_HOMES]


if not TYPE_CHECKING:  # to whom a module with a __getattr__ has every name

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module 'caffe_fold' has no attribute {name!r}")
        import importlib

        return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
