"""Every method keeps every property, in float32 and on a base in bfloat16; and the suite finds methods that do not."""

from __future__ import annotations

import pytest

from trainers.methods import METHODS
from trainers.methods.bias import Bias
from trainers.methods.conformance import PROPERTIES, Specimen, Verdict, examine, specimen
from trainers.methods.direct import DirectSubset
from trainers.units import REGIONS


@pytest.fixture(scope="module", params=METHODS.values(), ids=METHODS)
def method(request):
    return request.param


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def verdicts(request, method) -> dict[str, Verdict]:
    return examine(specimen(method, request.param))


@pytest.mark.parametrize("kept", PROPERTIES)
def test_every_method_keeps(verdicts, kept):
    assert verdicts[kept].holds, verdicts[kept].said


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("method, kinds", [(method, kinds) for method in METHODS.values() for kinds in method.kinds],
                         ids=lambda value: "+".join(value) if isinstance(value, tuple) else value.name)
def test_every_method_keeps_all_on_every_choice_of_kinds(method, kinds, precision):
    verdicts = examine(Specimen(method, REGIONS, kinds, precision))
    assert {name: verdict.said for name, verdict in verdicts.items() if not verdict.holds} == {}


class Faulty(Bias):
    """Bias tuning with a fault in its subset or in its count."""

    name = "bias"  # a candidate is put into words by its method's name
    subset: type[DirectSubset] = DirectSubset

    def apply(self, unet, units, candidate, cache=None):
        return self.subset(unet, units.chosen(candidate))


class Miscounted(Faulty):
    def count(self, unet, units, candidate):
        return super().count(unet, units, candidate) + 1


def with_subset(subset: type[DirectSubset]) -> Faulty:
    made = Faulty()
    made.subset = subset
    return made


class NotBack(DirectSubset):
    def restore(self):
        values = self.tensors()
        super().restore()
        parameter, first = next(iter(self.parameters.values())), next(iter(values.values()))
        parameter.data = first.to(parameter.dtype)


class HookLeft(DirectSubset):
    def __init__(self, unet, names):
        super().__init__(unet, names)
        unet.conv_in.register_forward_hook(lambda module, given, output: output)


class Moved(DirectSubset):
    def __init__(self, unet, names):
        super().__init__(unet, names)
        for parameter in self.parameters.values():
            parameter.data += 0.01


class Low(DirectSubset):
    def __init__(self, unet, names):
        super().__init__(unet, names)
        for parameter in self.parameters.values():
            parameter.data = parameter.data.bfloat16()


class HalfMerged(DirectSubset):
    def merged(self):
        return dict(list(super().merged().items())[::2])


class Rounded(DirectSubset):
    def tensors(self):
        return {name: tensor.bfloat16().float() for name, tensor in super().tensors().items()}


class Views(DirectSubset):
    def tensors(self):
        return {name: parameter.detach() for name, parameter in self.parameters.items()}


class Forgiving(DirectSubset):
    def load(self, tensors):
        for name, parameter in self.parameters.items():
            if name in tensors and tensors[name].shape == parameter.shape:
                parameter.data.copy_(tensors[name])


@pytest.mark.parametrize("method, broken", [(Miscounted(), "count"), (with_subset(NotBack), "restoring"), (with_subset(NotBack), "interrupted"),
                                            (with_subset(NotBack), "not finite"), (with_subset(HookLeft), "restoring"), (with_subset(Moved), "start"),
                                            (with_subset(HalfMerged), "merging"), (with_subset(Rounded), "loading"), (with_subset(Views), "training"),
                                            (with_subset(Forgiving), "refusing")],
                         ids=lambda value: value if isinstance(value, str) else value.subset.__name__)
def test_a_fault_is_found(method, broken):
    assert not examine(Specimen(method, REGIONS, ("bias",)))[broken].holds


def test_parameters_in_low_precision_are_found():
    assert not examine(Specimen(with_subset(Low), ("mid",), ("cross-attention",), "bf16"))["float32"].holds
