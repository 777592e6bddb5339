"""A part of a base model from one file in the layout of Stable Diffusion's authors, through diffusers' own conversion."""

from __future__ import annotations

from typing import Any

from trainers.model_files import SINGLE_PREFIXES, Source


def errors() -> tuple[type[Exception], ...]:
    """What diffusers' conversion raises beside the usual."""
    from diffusers.loaders.single_file_utils import SingleFileComponentError

    return (SingleFileComponentError,)


def read(source: Source, part: str, kind: Any, dtype: Any) -> tuple[Any, list[str]]:
    """A part and the names of its tensors that the file does not have. kind: UNet2DConditionModel, AutoencoderKL or CLIPTextModel.

    diffusers is told where the configs are: without `config` its loader asks the hub for them, even with `local_files_only`.
    """
    import torch
    from safetensors import safe_open

    with safe_open(source.single, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys() if name.startswith(SINGLE_PREFIXES[part])}
    configs = {"config": str(source.configs), "subfolder": part, "local_files_only": True}
    if part == "text_encoder":
        from diffusers.loaders.single_file_utils import create_diffusers_clip_model_from_ldm

        model = create_diffusers_clip_model_from_ldm(kind, tensors, **configs)
    else:
        try:
            model = kind.from_single_file(tensors, **configs)
        except NotImplementedError as error:  # "Cannot copy out of meta tensor": what the file lacks has no values
            raise KeyError("the file lacks some of its tensors") from error
    missing = [name for name, tensor in model.state_dict().items() if tensor.is_meta]
    # diffusers' own `to` warns of modules that are to stay in float32, also where there are none.
    return (model if missing else torch.nn.Module.to(model, dtype)), missing
