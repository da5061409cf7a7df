# %% [en]
# # 2. Patches
#
# A transformer works on a list of vectors, called tokens. An image becomes such a list by being cut into
# squares, the patches, each of which is turned into one vector by the same linear map.
# %% [fr]
# # 2. Les patches
#
# Un transformer travaille sur une liste de vecteurs, les tokens. Une image devient une telle liste quand on
# la découpe en carrés, les patches, et qu’une même application linéaire fait de chacun un vecteur.
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

import vitexplain  # before timm: it makes timm importable without a matching torchvision
import timm

plt.rcParams["figure.constrained_layout.use"] = True
torch.manual_seed(0)
model = timm.create_model("vit_tiny_patch16_224").eval()  # random weights: shapes are all we need
image = Image.open("examples/both.png").convert("RGB").resize((224, 224))
x = vitexplain.load_model("bundled").transform(image)[None]  # (1, 3, 224, 224)
# %% [en]
# ## Cut
#
# Patches of 16 × 16 pixels. **Predict:** how many patches does an image of 224 × 224 pixels have, and how
# many numbers does each of them hold?
# %% [fr]
# ## Découper
#
# Des patches de 16 × 16 pixels. **Prédisez :** combien de patches une image de 224 × 224 pixels a-t-elle,
# et combien de nombres chacun contient-il ?
# %%
size = 16
patches = x.unfold(2, size, size).unfold(3, size, size)  # (1, 3, 14, 14, 16, 16)
patches = patches.permute(0, 2, 3, 1, 4, 5).reshape(1, 14 * 14, 3 * size * size)
print(tuple(patches.shape))
assert patches.shape == (1, 196, 768)

figure, axes = plt.subplots(14, 14, figsize=(5, 5))
shown = (x - x.min()) / (x.max() - x.min())
for row in range(14):
    for column in range(14):
        part = shown[0, :, row * size : (row + 1) * size, column * size : (column + 1) * size]
        axes[row, column].imshow(part.permute(1, 2, 0))
        axes[row, column].axis("off")
plt.show()
# %% [en]
# 14 × 14 = 196 patches of 3 · 16 · 16 = 768 numbers. From now on, the model knows of the image only what
# it can tell from these 196 lists.
#
# ## One linear map for all: or a convolution?
#
# Textbooks say "flatten each patch, then a linear layer". The code says `nn.Conv2d(3, 192, kernel_size=16,
# stride=16)`. **Predict:** are these the same, nearly the same, or different?
# %% [fr]
# 14 × 14 = 196 patches de 3 · 16 · 16 = 768 nombres. Désormais, le modèle ne sait de l’image que ce que
# disent ces 196 listes.
#
# ## Une application linéaire pour tous : ou une convolution ?
#
# Les manuels disent « aplatir chaque patch, puis une couche linéaire ». Le code dit `nn.Conv2d(3, 192,
# kernel_size=16, stride=16)`. **Prédisez :** est-ce la même chose, presque la même, ou autre chose ?
# %%
convolution = model.patch_embed.proj
print(convolution)
weight = convolution.weight.flatten(1)  # (192, 3, 16, 16) -> (192, 768)
by_linear = patches @ weight.T + convolution.bias  # (1, 196, 192)
by_convolution = convolution(x).flatten(2).transpose(1, 2)  # (1, 192, 14, 14) -> (1, 196, 192)
assert torch.allclose(by_linear, by_convolution, atol=1e-5)
assert torch.allclose(by_linear, model.patch_embed(x), atol=1e-5)
print(tuple(by_linear.shape), "largest difference", (by_linear - by_convolution).abs().max().item())
# %% [en]
# They are the same: a convolution whose step is as wide as its kernel looks at each patch once, and its
# kernel *is* the matrix of the linear layer, in another shape. `flatten(2).transpose(1, 2)` only brings the
# result into the order of a list: the first row of patches from left to right, then the second.
#
# ## The price of smaller patches
#
# In attention each token looks at every other one. **Predict:** with patches half as wide, how many
# times more entries does an attention matrix have?
# %% [fr]
# C’est la même chose : une convolution dont le pas est aussi large que le noyau regarde chaque patch une
# fois, et son noyau *est* la matrice de la couche linéaire, sous une autre forme. `flatten(2).transpose(1,
# 2)` met seulement le résultat dans l’ordre d’une liste : la première ligne de patches de gauche à droite,
# puis la deuxième.
#
# ## Le prix de patches plus petits
#
# Dans l’attention, chaque token regarde tous les autres. **Prédisez :** avec des patches deux fois moins
# larges, combien de fois plus d’éléments une matrice d’attention a-t-elle ?
# %%
sizes = [56, 32, 28, 16, 14, 8, 7, 4]
entries = [((224 // s) ** 2) ** 2 for s in sizes]
figure, axis = plt.subplots(figsize=(6, 3))
axis.plot(sizes, entries, marker="o")
axis.set(xlabel="patch size (pixels)", ylabel="entries of one attention matrix", yscale="log")
axis.invert_xaxis()
plt.show()
assert entries[sizes.index(8)] == 16 * entries[sizes.index(16)]
# %% [en]
# Half the width means 4 times as many patches and 16 times as many entries: 38,416 with patches of 16
# pixels, 614,656 with 8. That is why patches are as large as they are, and why maps of a ViT are coarse.
#
# The bundled model has another way into tokens: a small convolutional network in place of the single
# convolution (a *hybrid*, lesson 8). What comes out has the same shape: 196 tokens.
# %% [fr]
# La moitié de la largeur, c’est 4 fois plus de patches et 16 fois plus d’éléments : 38 416 avec des patches
# de 16 pixels, 614 656 avec 8. Voilà pourquoi les patches sont si grands, et les cartes d’un ViT si
# grossières.
#
# Le modèle fourni arrive autrement à ses tokens : par un petit réseau convolutif au lieu d’une seule
# convolution (un *hybride*, leçon 8). Ce qui en sort a la même forme : 196 tokens.
# %%
bundled = vitexplain.load_model("bundled").model
with torch.inference_mode():
    tokens = bundled.patch_embed(x)
print(type(bundled.patch_embed).__name__, tuple(tokens.shape))
assert tokens.shape[1] == 196
