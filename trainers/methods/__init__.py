"""The table of methods: adding one is a file and a line here."""

from trainers.errors import BadSelection, nearest
from trainers.methods.attention import Attention
from trainers.methods.base import Method, Subset
from trainers.methods.bias import Bias
from trainers.methods.full import Full
from trainers.methods.lora import Lora
from trainers.methods.norm import Norm

METHODS: dict[str, Method] = {method.name: method for method in (Full(), Attention(), Norm(), Bias(), Lora())}


def method(name: str) -> Method:
    """The method of that name. Raises BadSelection with the nearest names."""
    if name not in METHODS:
        raise BadSelection(f"method {name!r} is unknown: take {nearest(name, METHODS)}")
    return METHODS[name]


__all__ = ["METHODS", "Method", "Subset", "method"]
