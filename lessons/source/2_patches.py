# %% [en]
# # 2 · Patches
#
# A transformer reads a sequence. An image becomes one by being cut into squares, and each square
# becomes a vector, a *token*. Papers say "flatten each patch, then a linear layer"; code says
# `Conv2d`. Which is it?
#
# The bundled model puts a small CNN in front of its transformer, so that its patches are not plain
# squares of pixels. For this lesson we take timm's `vit_tiny_patch16_224`, with random weights:
# what we show holds for any weights.
# %% [fr]
# # 2 · Les patchs
#
# Un transformer lit une suite. Une image en devient une quand on la découpe en carrés, et chaque
# carré devient un vecteur, un *token*. Les articles disent « aplatir chaque patch, puis une couche
# linéaire » ; le code dit `Conv2d`. Qui a raison ?
#
# Le modèle fourni place un petit CNN devant son transformer : ses patchs ne sont pas de simples
# carrés de pixels. Pour cette leçon, nous prenons donc `vit_tiny_patch16_224` de timm, aux poids
# aléatoires : ce que nous montrons vaut pour tous les poids.
# %%
import matplotlib.pyplot as plt
import torch
from PIL import Image
from torch.nn import functional as F

import vitexplain  # before timm
import timm

torch.manual_seed(0)
vit = timm.create_model("vit_tiny_patch16_224").eval()
photograph = Image.open("examples/red_panda.jpg").convert("RGB").resize((224, 224))
image = timm.data.create_transform((3, 224, 224), mean=[0.5] * 3, std=[0.5] * 3)(photograph)[None]
print(vit.patch_embed.proj)

# %% [en]
# ## Cut
#
# **Predict.** 224 × 224 pixels, patches of 16 × 16, three colours: how many patches, and how many
# numbers in each?
# %% [fr]
# ## Découper
#
# **Prédire.** 224 × 224 pixels, des patchs de 16 × 16, trois couleurs : combien de patchs, et
# combien de nombres dans chacun ?
# %%
patches = F.unfold(image, kernel_size=16, stride=16).transpose(1, 2)
print("patches:", tuple(patches.shape))
assert patches.shape == (1, 14 * 14, 3 * 16 * 16)

figure, axes = plt.subplots(14, 14, figsize=(6, 6))
for axis, patch in zip(axes.flat, patches[0], strict=True):
    axis.imshow(patch.reshape(3, 16, 16).permute(1, 2, 0) * 0.5 + 0.5)
    axis.axis("off")
plt.show()

# %% [en]
# **See.** 14 × 14 = 196 patches of 3 × 16 × 16 = 768 numbers. They are counted row by row: patch 0
# is at the top left, patch 13 at the top right, patch 14 begins the second row.
# %% [fr]
# **Voir.** 14 × 14 = 196 patchs de 3 × 16 × 16 = 768 nombres. On les compte ligne par ligne : le
# patch 0 est en haut à gauche, le patch 13 en haut à droite, le patch 14 commence la deuxième
# ligne.

# %% [en]
# ## Convolution, or flatten and linear?
#
# timm's layer is a convolution with a kernel of 16 and a *stride* of 16. Its weights have the
# shape (192, 3, 16, 16).
#
# **Predict.** If we flatten these weights to (192, 768) and multiply each flattened patch by them,
# how far are the results from those of the convolution?
# %% [fr]
# ## Convolution, ou aplatir et couche linéaire ?
#
# La couche de timm est une convolution de noyau 16 et de *pas* (stride) 16. Ses poids ont la forme
# (192, 3, 16, 16).
#
# **Prédire.** Si nous aplatissons ces poids en (192, 768) et les multiplions par chaque patch
# aplati, de combien les résultats diffèrent-ils de ceux de la convolution ?
# %%
convolution = vit.patch_embed.proj
with torch.inference_mode():
    by_convolution = convolution(image).flatten(2).transpose(1, 2)  # (1, 196, 192)
    weight = convolution.weight.flatten(1)  # (192, 768)
    by_linear = F.linear(patches, weight, convolution.bias)  # (1, 196, 192)
difference = (by_convolution - by_linear).abs().max().item()
print("largest difference:", difference)
assert torch.allclose(by_convolution, by_linear, atol=1e-4)

figure, axes = plt.subplots(1, 3, figsize=(12, 4), constrained_layout=True)
shown = {"convolution": by_convolution, "flatten + linear": by_linear}
shown["difference"] = by_convolution - by_linear
for axis, (name, tokens) in zip(axes, shown.items(), strict=True):
    drawn = axis.imshow(tokens[0, :, 0].reshape(14, 14), vmin=-1, vmax=1, cmap="RdBu")
    axis.set_title(f"{name}, dimension 0")
figure.colorbar(drawn, ax=axes)
plt.show()

# %% [en]
# **See.** They are the same operation, up to the rounding of float32. Where stride and kernel are
# equal, no two windows overlap, and sliding a kernel *is* cutting and multiplying. The convolution
# is only the faster way to write it.
# %% [fr]
# **Voir.** C'est la même opération, aux arrondis de float32 près. Quand le pas égale la taille du
# noyau, les fenêtres ne se chevauchent pas, et faire glisser un noyau, *c'est* découper et
# multiplier. La convolution n'est que la façon la plus rapide de l'écrire.

# %% [en]
# ## What a patch can't see
#
# **Predict.** We shuffle the patches of the image. How do the 196 tokens change?
# %% [fr]
# ## Ce qu'un patch ne voit pas
#
# **Prédire.** Nous mélangeons les patchs de l'image. Comment les 196 tokens changent-ils ?
# %%
order = torch.randperm(196, generator=torch.Generator().manual_seed(0))
shuffled = F.fold(patches[:, order].transpose(1, 2), (224, 224), kernel_size=16, stride=16)
with torch.inference_mode():
    tokens = vit.patch_embed(shuffled)
assert torch.allclose(tokens, by_convolution[:, order], atol=1e-4)

figure, axes = plt.subplots(1, 2, figsize=(8, 4), constrained_layout=True)
for axis, (name, pixels) in zip(axes, {"image": image, "shuffled": shuffled}.items(), strict=True):
    axis.imshow(pixels[0].permute(1, 2, 0) * 0.5 + 0.5)
    axis.set_title(name)
plt.show()

# %% [en]
# **See.** The same 196 tokens, in another order. A token knows its own pixels, but neither its
# neighbours nor its place. Neighbours are attention's business (lesson 4), the place that of the
# position embeddings, which come next.
# %% [fr]
# **Voir.** Les mêmes 196 tokens, dans un autre ordre. Un token connaît ses propres pixels, mais ni
# ses voisins ni sa place. Les voisins sont l'affaire de l'attention (leçon 4), la place celle des
# plongements de position, objet de la leçon suivante.

# %% [en]
# ## And the bundled model?
#
# **Predict.** Its tokens come from a CNN. We grey out one square of 16 × 16 pixels: how many of
# its tokens change, and how many would change in the plain ViT?
# %% [fr]
# ## Et le modèle fourni ?
#
# **Prédire.** Ses tokens viennent d'un CNN. Nous grisons un carré de 16 × 16 pixels : combien de
# ses tokens changent, et combien changeraient dans le ViT simple ?
# %%
bundled = vitexplain.load_model("bundled").model
covered = image.clone()
covered[:, :, 112:128, 112:128] = 0
changes = {}
with torch.inference_mode():
    for name, network in {"plain ViT": vit, "bundled (CNN first)": bundled}.items():
        before, after = network.patch_embed(image), network.patch_embed(covered)
        changes[name] = (after - before)[0].norm(dim=-1)  # of each of the 196 tokens
        print(name, (changes[name] > 1e-4).sum().item(), "tokens of 196 change")
assert (changes["plain ViT"] > 1e-4).sum() == 1

figure, axes = plt.subplots(1, 3, figsize=(12, 4), constrained_layout=True)
axes[0].imshow(covered[0].permute(1, 2, 0) * 0.5 + 0.5)
axes[0].set_title("one patch covered")
for axis, (name, change) in zip(axes[1:], changes.items(), strict=True):
    axis.imshow(change.reshape(14, 14) / change.max(), cmap="viridis")
    axis.set_title(f"{name}: change of each token")
plt.show()

# %% [en]
# **See.** One token in the plain ViT; in the bundled model, which is a *hybrid*, all of them, most
# of all those around the square: its convolutions have mixed the neighbourhood before the
# transformer starts. Keep this in mind when you read its maps: a bright patch stands for what its
# token has seen, which is more than its 16 × 16 pixels.
# %% [fr]
# **Voir.** Un seul token dans le ViT simple ; dans le modèle fourni, qui est un *hybride*, tous,
# et surtout ceux qui entourent le carré : ses convolutions ont mélangé le voisinage avant même que
# le transformer commence. Gardez-le à l'esprit en lisant ses cartes : un patch brillant représente
# ce que son token a vu, c'est-à-dire plus que ses 16 × 16 pixels.
