# %% [en]
# # 4. Attention
#
# In attention each token asks all others for something. One head, by hand: a **query** for what a token
# looks for, a **key** for what it has to offer, a **value** for what it hands over.
#
# $$A = \mathrm{softmax}\left(\frac{Q K^T}{\sqrt{d}}\right), \qquad \text{output} = A\,V$$
#
# (Vaswani et al. 2017, equation 1.)
# %% [fr]
# # 4. L’attention
#
# Dans l’attention, chaque token demande quelque chose à tous les autres. Une tête, à la main : une
# **requête** (query) pour ce qu’un token cherche, une **clé** (key) pour ce qu’il offre, une **valeur**
# (value) pour ce qu’il donne.
#
# $$A = \mathrm{softmax}\left(\frac{Q K^T}{\sqrt{d}}\right), \qquad \text{sortie} = A\,V$$
#
# (Vaswani et al. 2017, équation 1.)
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

from vitexplain import load_model

plt.rcParams["figure.constrained_layout.use"] = True
torch.set_grad_enabled(False)
loaded = load_model("bundled")
model = loaded.model
image = Image.open("examples/both.png").convert("RGB")
x = model._pos_embed(model.patch_embed(loaded.transform(image)[None]))  # (1, 197, 256)
block = model.blocks[0]
tokens = block.norm1(x)[0]  # (197, 256): what the first block's attention sees
heads = block.attn.num_heads
d = tokens.shape[1] // heads
print(f"{heads} heads of {d} dimensions")
# %% [en]
# ## One head
#
# timm keeps queries, keys and values of all heads in one matrix, `qkv`: three parts, each with the heads one
# after another. We take what belongs to head 0.
# %% [fr]
# ## Une tête
#
# timm garde requêtes, clés et valeurs de toutes les têtes dans une seule matrice, `qkv` : trois parties,
# chacune avec les têtes l’une après l’autre. Nous prenons ce qui appartient à la tête 0.
# %%
weight, bias = block.attn.qkv.weight, block.attn.qkv.bias
width = tokens.shape[1]


def part(which, head):
    rows = slice(which * width + head * d, which * width + (head + 1) * d)
    return tokens @ weight[rows].T + bias[rows]  # (197, 64)


query, key, value = (part(which, head=0) for which in range(3))
scores = query @ key.T / d**0.5  # (197, 197): row = who asks, column = who is asked
print(tuple(scores.shape))
# %% [en]
# **Predict:** softmax makes shares of the scores. Should rows sum to 1, or columns?
# %% [fr]
# **Prédisez :** la softmax fait des parts avec ces scores. Les lignes doivent-elles avoir pour somme 1, ou les
# colonnes ?
# %%
attention = scores.softmax(dim=-1)  # over the keys: each token divides its own attention
assert torch.allclose(attention.sum(dim=1), torch.ones(197), atol=1e-5)
columns = attention.sum(dim=0)
print(f"rows sum to 1; columns to between {columns.min():.2f} and {columns.max():.2f}")

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4))
left.imshow(attention, cmap="viridis")
left.set(title="attention of head 1", xlabel="key", ylabel="query")
right.plot(columns)
right.set(title="sum of each column", xlabel="key")
plt.show()


# %% [en]
# Rows: `dim=-1`, the keys. Each token has an attention of 1 to give, and divides it. What a token *receives*,
# its column's sum, is free: some are asked by all, some by nobody. Softmax over the other axis would run
# without an error and mean something else.
#
# ## Where does one patch look?
#
# A row of the matrix, without the class token, is a map. **Predict:** for a patch on the cat's face, will the
# four heads look at the same places?
# %% [fr]
# Les lignes : `dim=-1`, les clés. Chaque token a une attention de 1 à donner, et la partage. Ce qu’un token
# *reçoit*, la somme de sa colonne, est libre : certains sont demandés par tous, d’autres par personne. Une
# softmax sur l’autre axe ne lèverait aucune erreur et voudrait dire autre chose.
#
# ## Où regarde un patch ?
#
# Une ligne de la matrice, sans le token de classe, est une carte. **Prédisez :** pour un patch sur la tête du
# chat, les quatre têtes d’attention regardent-elles aux mêmes endroits ?
# %%
def attention_of(head):
    query, key = part(0, head), part(1, head)
    return (query @ key.T / d**0.5).softmax(dim=-1)


row, column = 6, 10
token = 1 + row * 14 + column  # the class token is number 0
figure, axes = plt.subplots(1, heads + 1, figsize=(13, 2.8))
axes[0].imshow(image.resize((224, 224)))
axes[0].scatter(
    16 * column + 8, 16 * row + 8, marker="s", s=120, facecolors="none", edgecolors="white"
)
axes[0].set_title("query")
for head in range(heads):
    axes[head + 1].imshow(attention_of(head)[token, 1:].reshape(14, 14))
    axes[head + 1].set_title(f"head {head + 1}")
for axis in axes:
    axis.axis("off")
plt.show()
# %% [en]
# Each head has its own queries and keys, so each asks another question.
#
# ## All heads together
#
# What a head hands over is $A\,V$: for each token the mean of all values, weighted by its attention. The heads'
# results are set side by side, and one more linear map, `proj`, mixes them. **Check:** is that all that timm's
# attention does?
# %% [fr]
# Chaque tête a ses propres requêtes et clés : chacune pose une autre question.
#
# ## Toutes les têtes ensemble
#
# Ce qu’une tête donne est $A\,V$ : pour chaque token, la moyenne de toutes les valeurs, pondérée par son
# attention. Les résultats des têtes sont mis côte à côte, et une application linéaire de plus, `proj`, les
# mélange. **Vérifiez :** est-ce tout ce que fait l’attention de timm ?
# %%
outputs = [attention_of(head) @ part(2, head) for head in range(heads)]  # each (197, 64)
together = block.attn.proj(torch.cat(outputs, dim=1))  # (197, 256)
assert torch.allclose(together, block.attn(block.norm1(x))[0], atol=1e-4)
print("equal: largest difference", (together - block.attn(block.norm1(x))[0]).abs().max().item())
# %% [en]
# It is. Two things to keep for lesson 7: a map of attention shows $A$, but what is handed over is $A\,V$; a
# token with much attention and a small value gives little. And this is one block of four: the next one attends
# to tokens that are mixtures already.
# %% [fr]
# Oui. Deux choses à retenir pour la leçon 7 : une carte d’attention montre $A$, mais ce qui est donné est
# $A\,V$ ; un token qui reçoit beaucoup d’attention et a une petite valeur donne peu. Et ce n’est qu’un bloc
# sur quatre : le suivant regarde des tokens qui sont déjà des mélanges.
