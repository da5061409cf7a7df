"""What several tests build on: small random models, where things are, and the command."""

import os
import sys
import warnings
import xml.etree.ElementTree as xml
from contextlib import ExitStack, chdir, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

import torch
from PIL import ExifTags, Image
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from vitexplain.cli.main import main

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"


def make_vit(cls=VisionTransformer, **changes):
    """A small random ViT in evaluation mode, its weights large enough for uneven attention."""
    torch.manual_seed(0)
    settings = {
        "img_size": 32,
        "patch_size": 8,
        "embed_dim": 24,
        "depth": 3,
        "num_heads": 3,
        "num_classes": 7,
    }
    model = cls(**settings | changes)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.normal_(std=0.3)
    return model.eval()


class Additive(nn.Module):
    """Category 0's logit is the sum of what each of 4 x 4 patches is worth."""

    num_classes = 3

    def __init__(self, worth):
        super().__init__()
        self.worth = nn.Parameter(torch.tensor(worth, dtype=torch.float32).reshape(4, 4))

    def forward(self, images):
        patches = nn.functional.avg_pool2d(images.mean(dim=1), 8)
        logit = (patches * self.worth).sum(dim=(1, 2))
        return torch.stack([logit, torch.zeros_like(logit), torch.zeros_like(logit)], dim=1)


def random_attention(batch, heads, tokens, depth, seed=0):
    """Softmaxed attention (B, H, N, N) of `depth` blocks."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(batch, heads, tokens, tokens, generator=generator).mul(2).softmax(-1)
        for _ in range(depth)
    ]


# token layout -> (model arguments, prefix tokens, read-out in words)
LAYOUTS = {
    "class token": ({}, 1, "class token"),
    "4 registers": ({"reg_tokens": 4}, 5, "class token"),
    "no prefix, average": (
        {"class_token": False, "global_pool": "avg"},
        0,
        "mean over 16 patches",
    ),
    "unused class token": ({"global_pool": "avg"}, 1, "mean over 16 patches"),
    "register only": (
        {"class_token": False, "reg_tokens": 1, "global_pool": "avg"},
        1,
        "mean over 16 patches",
    ),
    "prefix pooled too": (
        {"reg_tokens": 2, "global_pool": "avg", "pool_include_prefix": True},
        3,
        "mean over all 19 tokens",
    ),
    "distilled": (
        {"cls": VisionTransformerDistilled},
        2,
        "mean of the class and distillation tokens",
    ),
}


def expected_readout(layout, prefix):
    """How much the classifier reads each of the tokens, written out for the layouts above."""
    patches = 16
    if layout == "distilled":
        return [0.5, 0.5] + [0.0] * patches
    if layout == "prefix pooled too":
        return [1 / (prefix + patches)] * (prefix + patches)
    if layout in ("class token", "4 registers"):
        return [1.0] + [0.0] * (prefix - 1 + patches)
    return [0.0] * prefix + [1 / patches] * patches


@dataclass(frozen=True)
class Done:
    """How a command ended, as `subprocess.CompletedProcess` says it."""

    returncode: int
    stdout: str
    stderr: str


def run_here(*arguments, cwd, encoding="utf-8"):
    """Run the command in this process, three seconds sooner than one that imports torch anew.

    What a process of its own would print is returned, also what libraries print from C, and
    warnings, which pytest would keep for itself.
    """
    with ExitStack() as undo:
        undo.enter_context(chdir(cwd))
        undo.enter_context(_warnings_are_printed())
        printed = [undo.enter_context(_redirected(name, encoding)) for name in ("stdout", "stderr")]
        try:
            code = main(list(map(str, arguments)))
        except SystemExit as stop:  # argparse
            code = stop.code or 0
        texts = []
        for stream in printed:
            stream.flush()
            stream.seek(0)
            texts.append(stream.read())
    return Done(code, *texts)


@contextmanager
def _redirected(name, encoding):
    """What goes to sys.stdout or sys.stderr, or straight to its number, lands in a file."""
    number = {"stdout": 1, "stderr": 2}[name]
    stream, was = getattr(sys, name), os.dup(number)
    with TemporaryFile("w+", encoding=encoding) as file:
        stream.flush()
        os.dup2(file.fileno(), number)
        setattr(sys, name, file)
        try:
            yield file
        finally:
            setattr(sys, name, stream)
            os.dup2(was, number)
            os.close(was)


@contextmanager
def _warnings_are_printed():
    """Those that a process prints unless it is told otherwise."""

    def show(message, category, filename, lineno, file=None, line=None):
        sys.stderr.write(warnings.formatwarning(message, category, filename, lineno, line))

    with warnings.catch_warnings():
        warnings.resetwarnings()
        for hidden in (DeprecationWarning, PendingDeprecationWarning, ImportWarning,
                       ResourceWarning):  # fmt: skip
            warnings.simplefilter("ignore", hidden)
        warnings.showwarning = show
        yield


def texts_of(path):
    """The texts that an overlay carries, whatever its format; EXIF must agree with them."""
    with Image.open(path) as image:
        if image.format == "PNG":
            return image.text
        (described,) = xml.fromstring(image.info["xmp"]).iter(f"{{{RDF}}}Description")
        texts = {each.tag.removeprefix("{urn:vit_explain:}"): each.text or "" for each in described}
        assert image.getexif()[ExifTags.Base.Software] == texts["Software"]
        return texts
