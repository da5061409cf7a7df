"""Models that are in memory already, of transformers' and torchvision's classes, as timm's."""

from copy import deepcopy
from functools import partial

from timm.models.vision_transformer import VisionTransformer
from torch import nn

from vitexplain.checkpoints.layouts import data_of, timms_names
from vitexplain.checkpoints.reading import CheckpointError
from vitexplain.checkpoints.transformers_folders import Converted, convert
from vitexplain.errors import ModelError, one_line


def converted(model: nn.Module) -> Converted | None:
    """The same weights in one of timm's networks; None for a class of nobody else's.

    Raises:
        ModelError: for a class of theirs that can't be converted.
    """
    module, name = type(model).__module__, type(model).__name__
    if module.startswith("transformers."):
        config = {**model.config.to_dict(), "architectures": [name]}
        make = partial(convert, config, model.state_dict(), {})
    elif module == "torchvision.models.vision_transformer":
        make = partial(_torchvisions, model)
    else:
        return None
    try:
        found = make()
    except ModelError as error:
        raise ModelError(f"{name}: {error}") from error
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise ModelError(f"{name} can't be converted: {one_line(error, 200)}") from error
    parameter = next(model.parameters())
    found.model.train(model.training).to(parameter.device, parameter.dtype)
    return found


def _torchvisions(model: nn.Module) -> Converted:
    if not isinstance(getattr(model, "conv_proj", None), nn.Conv2d):
        raise CheckpointError("only torchvision's ViTs with a plain patch embedding are converted")
    layers = model.encoder.layers
    twin = VisionTransformer(
        img_size=model.image_size,
        patch_size=model.patch_size,
        in_chans=model.conv_proj.in_channels,
        num_classes=0,
        embed_dim=model.hidden_dim,
        depth=len(layers),
        num_heads=layers[0].num_heads,
        mlp_ratio=model.mlp_dim / model.hidden_dim,
        norm_layer=partial(nn.LayerNorm, eps=model.encoder.ln.eps),
    )
    state = model.state_dict()
    weights = timms_names({k: v for k, v in state.items() if not k.startswith("heads.")}, "")
    twin.load_state_dict(weights)
    twin.head = deepcopy(model.heads)
    twin.num_classes = model.num_classes
    size = (twin.patch_embed.proj.in_channels, model.image_size, model.image_size)
    return Converted(twin, {"input_size": size, "crop_mode": "center", **data_of(state)})
