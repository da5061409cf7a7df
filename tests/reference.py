"""Slow calculations written from the formulas, sharing no code with the product.

Matrices are plain nested loops over numpy arrays in double precision; the model's forward pass is
written out by hand, so that attention and gradients are known without any hook.
"""

import math

import numpy as np
import torch
from torch.overrides import TorchFunctionMode


def fuse(heads, how):
    """heads[h][i][j] -> [i][j]."""
    count, n = len(heads), len(heads[0])
    fused = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            values = [heads[h][i][j] for h in range(count)]
            fused[i, j] = {"mean": sum(values) / count, "max": max(values), "min": min(values)}[how]
    return fused


def discard(matrix, ratio, prefix):
    """The lowest floor(ratio * entries) entries of the patch columns set to 0."""
    n = len(matrix)
    entries = sorted((matrix[i][j], i, j) for i in range(n) for j in range(prefix, n))
    kept = matrix.copy()
    for _, i, j in entries[: math.floor(len(entries) * ratio)]:
        kept[i, j] = 0.0
    return kept


def with_residual(matrix):
    n = len(matrix)
    result = np.zeros((n, n))
    for i in range(n):
        row = [matrix[i][j] + (1.0 if i == j else 0.0) for j in range(n)]
        for j in range(n):
            result[i, j] = row[j] / sum(row)
    return result


def multiply(a, b):
    n = len(a)
    return np.array(
        [[sum(a[i][k] * b[k][j] for k in range(n)) for j in range(n)] for i in range(n)]
    )


def rollout(fused, ratio, prefix, grid, read, start=0, pooled=False):
    """(h, w) mask; `read[i]` is how much the classifier reads token i.

    What stays at a token by its residual connections alone is no part of it, unless a pool
    attends (`pooled`).
    """
    n = len(fused[0])
    result, alone = np.eye(n), [0.0 if pooled else 1.0] * n
    for matrix in fused[start:]:
        kept = discard(matrix, ratio, prefix)
        result = multiply(with_residual(kept), result)
        alone = [share / (sum(row) + 1) for share, row in zip(alone, kept, strict=True)]
    row = [sum(read[i] * (result[i][j] - (i == j) * alone[i]) for i in range(n)) for j in range(n)]
    patches = np.array(row[prefix:])
    return (patches / patches.max()).reshape(grid)


def weighted(attention, gradient, how):
    """fuse((A * G)^+) of attention[h][i][j] and gradient[h][i][j]."""
    heads = np.zeros(np.shape(attention))
    for index in np.ndindex(heads.shape):
        heads[index] = max(attention[index] * gradient[index], 0.0)
    return fuse(heads, how)


def published_product(fused):
    """The older script: entry [i, j] divided by the sum of row j."""
    n = len(fused[0])
    result = np.eye(n)
    for matrix in fused:
        a = np.zeros((n, n))
        sums = [sum((matrix[j][k] + (j == k)) / 2 for k in range(n)) for j in range(n)]
        for i in range(n):
            for j in range(n):
                a[i, j] = (matrix[i][j] + (i == j)) / 2 / sums[j]
        result = multiply(a, result)
    return result


def published_discard(matrix, ratio, spare_first):
    n = len(matrix)
    entries = sorted((matrix[i][j], i * n + j) for i in range(n) for j in range(n))
    kept = matrix.copy()
    for _, flat in entries[: int(n * n * ratio)]:
        if not (spare_first and flat == 0):
            kept[flat // n, flat % n] = 0.0
    return kept


def published_rollout(attentions, how, ratio, grid):
    fused = [published_discard(fuse(heads, how), ratio, True) for heads in attentions]
    mask = published_product(fused)[0, 1:]
    return (mask / mask.max()).reshape(grid)


def published_grad_rollout(attentions, gradients, ratio, grid):
    """`gradients` are those of the attention; the script used those of the scores, reversed."""
    depth, n = len(attentions), len(attentions[0][0])
    fused = []
    for block in range(depth):
        a, other, g = attentions[block], attentions[depth - 1 - block], gradients[depth - 1 - block]
        mean = np.zeros((n, n))
        for i in range(n):
            for j in range(n):
                values = []
                for h in range(len(a)):
                    inner = sum(other[h][i][k] * g[h][i][k] for k in range(n))
                    values.append(a[h][i][j] * other[h][i][j] * (g[h][i][j] - inner))
                mean[i, j] = max(sum(values) / len(values), 0.0)
        fused.append(published_discard(mean, ratio, False))
    mask = published_product(fused)[0, 1:]
    return (mask / mask.max()).reshape(grid)


def attend(attn, tokens, change=None):
    """One attention module of timm by hand: (output, attention (B, H, N, N))."""
    b, n, c = tokens.shape
    heads = attn.num_heads
    qkv = attn.qkv(tokens).reshape(b, n, 3, heads, c // heads).permute(2, 0, 3, 1, 4)
    q, k, v = attn.q_norm(qkv[0]), attn.k_norm(qkv[1]), qkv[2]
    attention = torch.softmax(q @ k.transpose(2, 3) / math.sqrt(c // heads), dim=3)
    if change is not None:
        attention = attention + change
    return attn.proj((attention @ v).transpose(1, 2).reshape(b, n, c)), attention


def forward(model, images, changes=None):
    """The whole network by hand: (logits, attention of each block).

    `changes` maps a block's number to what is added to its attention matrix.
    """
    changes = changes or {}
    tokens = model.norm_pre(model._pos_embed(model.patch_embed(images)))
    attentions = []
    for number, block in enumerate(model.blocks):
        out, attention = attend(block.attn, block.norm1(tokens), changes.get(number))
        attentions.append(attention)
        tokens = tokens + block.ls1(out)
        tokens = tokens + block.ls2(block.mlp(block.norm2(tokens)))
    return model.forward_head(model.norm(tokens)), attentions


def gradients(model, images, categories):
    """(attentions, gradients of each image's logit with respect to them), by autograd."""
    with torch.enable_grad():
        logits, attentions = forward(model, images)
        score = sum(logits[i, c] for i, c in enumerate(categories))
        return attentions, torch.autograd.grad(score, attentions)


def of_image(tensors, index):
    """[(B, H, N, N)] -> [(H, N, N)] of one image, numpy in double precision."""
    return [tensor[index].detach().double().numpy() for tensor in tensors]


class Softmaxes(TorchFunctionMode):
    """Every softmax of four dimensions that a forward pass computes, in order, differentiable.

    Needs no module to be known by name, but models that compute attention in the open.
    """

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") == "softmax" and result.ndim == 4:
            result = result.detach().requires_grad_() if not result.requires_grad else result
            self.seen.append(result)
        return result


def softmaxes(model, images, categories):
    """(attentions, gradients of each image's logit, logits) of a model of any family."""
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    with torch.enable_grad(), Softmaxes() as recorded:
        logits = model(images)
        score = sum(logits[i, c] for i, c in enumerate(categories))
        gradients = torch.autograd.grad(score, recorded.seen)
    return recorded.seen, gradients, logits.detach()
