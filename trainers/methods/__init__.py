"""The table of methods: adding one is a file and a line here; one of PEFT's tuners is a line in `peft_tuners`."""

from trainers.errors import BadSelection, nearest
from trainers.methods.attention import Attention
from trainers.methods.base import BaseCache, Method, Subset
from trainers.methods.bias import Bias
from trainers.methods.difffit import DiffFit
from trainers.methods.full import Full
from trainers.methods.norm import Norm
from trainers.methods.peft_tuners import INSTALLED, TUNERS, missing, tuners_of
from trainers.methods.svdiff import SvDiff

METHODS: dict[str, Method] = {method.name: method for method in (
    Full(), Attention(), Norm(), Bias(), SvDiff(), DiffFit(), *tuners_of(TUNERS, INSTALLED))}


def method(name: str) -> Method:
    """The method of that name. Raises BadSelection with the nearest names, or with the version of PEFT that has it."""
    if name not in METHODS:
        raise BadSelection(missing(name, TUNERS, INSTALLED) or f"method {name!r} is unknown: take {nearest(name, METHODS)}")
    return METHODS[name]


__all__ = ["METHODS", "BaseCache", "Method", "Subset", "method"]
