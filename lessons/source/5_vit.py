# %% [en]
# # 5. A whole Vision Transformer in 60 lines
#
# A block is attention (lesson 4), then a small network for each token by itself (the MLP), each with a
# normalisation before it and a sum around it. Some blocks one after another, and a linear map that reads the
# class token: that is all.
#
# Below is a whole ViT. We load timm's weights into it and compare the logits.
# %% [fr]
# # 5. Un Vision Transformer entier en 60 lignes
#
# Un bloc, c’est l’attention (leçon 4), puis un petit réseau pour chaque token à part (le MLP), chacun précédé
# d’une normalisation et entouré d’une somme. Quelques blocs l’un après l’autre, et une application linéaire qui
# lit le token de classe : c’est tout.
#
# Voici un ViT entier. Nous y chargeons les poids de timm et comparons les logits.
# %%
import os
import sys
from pathlib import Path

root = next(p for p in (Path.cwd(), *Path.cwd().parents) if (p / "vit_explain.py").exists())
sys.path.insert(0, str(root))
os.chdir(root)

import matplotlib.pyplot as plt
import torch
from PIL import Image
from torch import nn

from vitexplain import load_model
import timm

plt.rcParams["figure.constrained_layout.use"] = True
loaded = load_model("bundled")
image = Image.open("examples/both.png").convert("RGB")
x = loaded.transform(image)[None]


# %%
class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x):  # (B, N, width)
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5  # (B, H, N, N)
        mixed = scores.softmax(dim=-1) @ value  # (B, H, N, d)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x):
        return self.fc2(nn.functional.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))  # tokens exchange
        return x + self.mlp(self.norm2(x))  # each token by itself


class PatchEmbedding(nn.Module):
    def __init__(self, width, patch):
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=patch, stride=patch)

    def forward(self, x):  # (B, 3, 224, 224) -> (B, 196, width)
        return self.proj(x).flatten(2).transpose(1, 2)


class ViT(nn.Module):
    def __init__(self, width=192, depth=12, heads=3, categories=1000, side=224, patch=16):
        super().__init__()
        self.patch_embed = PatchEmbedding(width, patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.randn(1, (side // patch) ** 2 + 1, width) * 0.02)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, categories)

    def forward(self, x):
        patches = self.patch_embed(x)
        cls = self.cls_token.expand(len(x), -1, -1)
        tokens = torch.cat([cls, patches], dim=1) + self.pos_embed
        return self.head(self.norm(self.blocks(tokens))[:, 0])


# %% [en]
# **Predict:** does it have the same parameters as timm's `vit_tiny_patch16_224`, by name and shape?
# %% [fr]
# **Prédisez :** a-t-il les mêmes paramètres que `vit_tiny_patch16_224` de timm, noms et formes compris ?
# %%
torch.manual_seed(0)
theirs = timm.create_model("vit_tiny_patch16_224").eval()
ours = ViT().eval()
assert {n: p.shape for n, p in ours.named_parameters()} == {
    n: p.shape for n, p in theirs.named_parameters()
}
ours.load_state_dict(theirs.state_dict())
with torch.inference_mode():
    difference = (ours(x) - theirs(x)).abs().max().item()
print(
    f"{sum(p.numel() for p in ours.parameters()):,} parameters, logits differ by {difference:.1e}"
)
assert difference < 1e-4
# %% [en]
# The same model. Where are its parameters? **Predict:** attention, MLP, patch embedding, head: which part is
# the largest?
# %% [fr]
# Le même modèle. Où sont ses paramètres ? **Prédisez :** attention, MLP, plongement des patches, tête de
# classification : quelle partie est la plus grande ?
# %%
parts = {"patch_embed": 0, "pos_embed": 0, "attn": 0, "mlp": 0, "head": 0}
for name, parameter in ours.named_parameters():
    found = next((part for part in parts if part in name.split(".")), None)
    if found:
        parts[found] += parameter.numel()
figure, axis = plt.subplots(figsize=(6, 2.5))
axis.barh(list(parts), list(parts.values()))
axis.set(xlabel="parameters")
plt.show()
assert max(parts, key=parts.get) == "mlp"
# %% [en]
# Two thirds of each block are MLP: a map of attention says nothing about what happens there.
#
# ## Sums, not replacements
#
# `x = x + …`: each block *adds* to a token. **Predict:** how much of a token is still there after all blocks?
# We compare each token of the bundled model with what it was at the start.
# %% [fr]
# Deux tiers de chaque bloc sont du MLP : une carte d’attention ne dit rien de ce qui s’y passe.
#
# ## Des sommes, pas des remplacements
#
# `x = x + …` : chaque bloc *ajoute* à un token. **Prédisez :** que reste-t-il d’un token après tous les blocs ?
# Nous comparons chaque token du modèle fourni à ce qu’il était au départ.
# %%
model = loaded.model
with torch.inference_mode():
    tokens = model._pos_embed(model.patch_embed(x))
    start, cosines, lengths = tokens, [], []
    for block in model.blocks:
        tokens = block(tokens)
        cosines.append(nn.functional.cosine_similarity(tokens, start, dim=-1)[0])
        lengths.append(tokens[0].norm(dim=-1))
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3))
blocks = range(1, len(cosines) + 1)
for axis, values in ((left, cosines), (right, lengths)):
    axis.plot(blocks, [v[1:].mean() for v in values], marker="o", label="patches (mean)")
    axis.plot(blocks, [v[0] for v in values], marker="o", label="class token")
    axis.set(xlabel="block", xticks=blocks)
left.set(ylabel="cosine with the start")
right.set(ylabel="length")
left.legend()
plt.show()
print(
    "after the last block: class token",
    f"{cosines[-1][0]:.2f},",
    f"patches {cosines[-1][1:].mean():.2f}",
)
# %% [en]
# After three blocks a patch still points mostly where it began; the last block adds the most. The class token,
# which began the same for every image, has left its place after the first block. Rollout (lesson 7) adds the identity to each attention matrix, as if half of every token stayed
# what it was. That is a convention, not something measured in this model.
#
# ## A new head
#
# For other categories only the last layer is replaced. **Predict:** can the old weights be loaded into a model
# with 3 categories?
# %% [fr]
# Après trois blocs, un patch pointe encore à peu près là où il a commencé ; c’est le dernier bloc qui ajoute le
# plus. Le token de classe, le même au départ pour toute image, a quitté sa place dès le premier. Le rollout (leçon 7) ajoute l’identité à chaque matrice d’attention, comme si
# la moitié de chaque token restait ce qu’elle était. C’est une convention, non une mesure faite sur ce modèle.
#
# ## Une nouvelle tête
#
# Pour d’autres catégories, on ne remplace que la dernière couche. **Prédisez :** peut-on charger les anciens
# poids dans un modèle à 3 catégories ?
# %%
small = ViT(categories=3)
try:
    small.load_state_dict(theirs.state_dict())
except RuntimeError as error:
    print(str(error).splitlines()[1].strip())
rest = {name: value for name, value in theirs.state_dict().items() if not name.startswith("head.")}
missing = small.load_state_dict(rest, strict=False).missing_keys
assert missing == ["head.weight", "head.bias"]
print("to be learned anew:", missing)
# %% [en]
# Names stay (`head.weight`), shapes change. If you leave `head` out and load the rest, say so and check that
# *only* the head is missing: `strict=False` also keeps silent about a misspelt key.
# %% [fr]
# Les noms restent (`head.weight`), les formes changent. Si vous laissez `head` de côté et chargez le reste,
# vérifiez qu’il ne manque *que* la tête : `strict=False` se tait aussi sur une clé mal orthographiée.
