# %% [en]
# # 7 · Seeing what the model looked at
#
# From attention to a map: one head's attention, attention rollout by three matrix products,
# gradient rollout for one category, several methods side by side, and the question which of them
# to believe.
# %% [fr]
# # 7 · Voir ce que le modèle a regardé
#
# De l'attention à la carte : l'attention d'un bloc, l'*attention rollout* en trois produits de
# matrices, le *gradient rollout* pour une catégorie, plusieurs méthodes côte à côte, et la
# question de savoir laquelle croire.
# %%
import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image

from vit_rollout import VITAttentionRollout
from vitexplain import explain, load_model
from vitexplain.faithfulness.score import faithfulness

loaded = load_model("bundled")
model = loaded.model
photograph = Image.open("examples/both.png").convert("RGB")
image = loaded.transform(photograph)[None]


def show(maps, columns=4):
    """Maps (14, 14) by name, over the photograph."""
    rows = -(-len(maps) // columns)
    _, axes = plt.subplots(rows, columns, figsize=(3.6 * columns, 2.2 * rows), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, (name, of_patches) in zip(axes.flat, maps.items(), strict=False):
        extent = (0, *photograph.size, 0)
        axis.imshow(photograph)
        axis.imshow(of_patches, cmap="turbo", alpha=0.5, extent=extent, interpolation="bilinear")
        axis.set_title(name)
    plt.show()


# %% [en]
# ## The attention of the class token
#
# We collect each block's attention, (4, 197, 197), with the four lines of lesson 4, and take the
# mean over the heads.
#
# **Predict.** Row 0 of the *last* block is what the class token fetched there. Does it show what
# the whole network used?
# %% [fr]
# ## L'attention du jeton de classe
#
# Nous recueillons l'attention de chaque bloc, (4, 197, 197), avec les quatre lignes de la leçon 4,
# et en faisons la moyenne sur les têtes.
#
# **Prédire.** La ligne 0 du *dernier* bloc est ce que le jeton de classe y a pris. Montre-t-elle
# ce que le réseau entier a utilisé ?
# %%
attentions = []
with torch.inference_mode():
    x = model._pos_embed(model.patch_embed(image))
    for block in model.blocks:
        q, k, _ = block.attn.qkv(block.norm1(x)).reshape(197, 3, 4, 64).permute(1, 2, 0, 3)
        attentions.append((q @ k.transpose(1, 2) / 8).softmax(dim=-1))  # (4, 197, 197)
        x = block(x)
fused = [attention.mean(dim=0) for attention in attentions]  # (197, 197) each
show({f"block {n}": matrix[0, 1:].reshape(14, 14) for n, matrix in enumerate(fused, start=1)})

# %% [en]
# **See.** Each block looks elsewhere, and from block 2 on the tokens that are looked at are
# already mixtures of others. One block's attention is one link of a chain.
# %% [fr]
# **Voir.** Chaque bloc regarde ailleurs, et dès le bloc 2, les tokens regardés sont déjà des
# mélanges d'autres tokens. L'attention d'un seul bloc n'est qu'un maillon d'une chaîne.

# %% [en]
# ## Rollout: three products
#
# A block hands on $\tilde A = (A + I) / 2$: half from the tokens looked at, half the token itself
# (the residual). Four blocks, one after the other, are three matrix products:
# $R = \tilde A_4 \tilde A_3 \tilde A_2 \tilde A_1$ (Abnar & Zuidema 2020).
#
# **Predict.** The rows of each $\tilde A$ sum to 1. What do the rows of $R$ sum to?
# %% [fr]
# ## Le rollout : trois produits
#
# Un bloc transmet $\tilde A = (A + I) / 2$ : une moitié vient des tokens regardés, l'autre du
# token lui-même (le résidu). Quatre blocs à la suite font trois produits de matrices :
# $R = \tilde A_4 \tilde A_3 \tilde A_2 \tilde A_1$ (Abnar & Zuidema 2020).
#
# **Prédire.** Les lignes de chaque $\tilde A$ ont 1 pour somme. Quelle est la somme des lignes de
# $R$ ?
# %%
one, two, three, four = ((matrix + torch.eye(197)) / 2 for matrix in fused)
rollout = four @ three @ two @ one
print("rows:", rollout.sum(dim=1).min().item(), "to", rollout.sum(dim=1).max().item())
assert torch.allclose(rollout.sum(dim=1), torch.ones(197), atol=1e-4)

ours = rollout[0, 1:].reshape(14, 14)  # the class token's row, at the patches
ours = (ours / ours.max()).numpy()
theirs = VITAttentionRollout(model, head_fusion="mean", discard_ratio=0)(image)
assert np.allclose(ours, theirs, atol=1e-4)
refined = explain(photograph, model=loaded)  # head_fusion="max", discard_ratio=0.9
show({"three products": ours, "the tool, same settings": theirs, "its defaults": refined.map}, 3)

# %% [en]
# **See.** To 1 again: rollout divides one portion among the patches. Our map is the tool's, the
# assert says so. Its defaults (the strongest head, the weakest 90 % dropped) give the clearer
# image; that is a choice, not a measurement.
# %% [fr]
# **Voir.** De nouveau 1 : le rollout partage une portion entre les patchs. Notre carte est celle
# de l'outil, l'assert le dit. Ses réglages par défaut (la tête la plus forte, les 90 % les plus
# faibles écartés) donnent l'image plus nette ; c'est un choix, pas une mesure.

# %% [en]
# ## For one category: gradient rollout
#
# Rollout gives one map, whatever the question. Gradient rollout weights each attention with the
# gradient of one category's logit: what would raise *this* answer?
#
# **Predict.** Where will the map for "bull mastiff" be, where that for "tiger cat", and where that
# for "espresso", which is not in the image?
# %% [fr]
# ## Pour une catégorie : le gradient rollout
#
# Le rollout donne une seule carte, quelle que soit la question. Le gradient rollout pondère chaque
# attention par le gradient du logit d'une catégorie : qu'est-ce qui renforcerait *cette* réponse ?
#
# **Prédire.** Où sera la carte de « bull mastiff » (un chien), où celle de « tiger cat » (un
# chat), et où celle d'« espresso », qui n'est pas dans l'image ?
# %%
names = ("bull mastiff", "tiger cat", "espresso")
of_category = {name: explain(photograph, name, model=loaded) for name in names}
show({f"{n} {e.category.probability:.3f}": e.map for n, e in of_category.items()}, 3)
halves = {name: each.map[:, :7].sum() / each.map.sum() for name, each in of_category.items()}
print("share of the map in the left half:", {n: round(float(h), 2) for n, h in halves.items()})
assert halves["bull mastiff"] > 0.5 > halves["tiger cat"]

# %% [en]
# **See.** The mastiff's map is on the dog, the tiger cat's on the cat. "Espresso" has a map as
# well, at a probability of 0.000: maps are scaled to a largest value of 1, so that even nothing is
# drawn in red. Always read the probability with the map.
# %% [fr]
# **Voir.** La carte du mastiff est sur le chien, celle du « tiger cat » sur le chat. « Espresso »
# a aussi sa carte, avec une probabilité de 0,000 : les cartes sont mises à l'échelle pour que leur
# maximum soit 1, et même un rien est dessiné en rouge. Lisez toujours la probabilité avec la
# carte.

# %% [en]
# ## Methods compared, and faithfulness
#
# The tool has eleven methods. A way to judge them without knowing the truth: cover the patches that
# the map calls important, and see whether the probability falls (and show only those, and see
# whether it rises). `faithfulness()` does both, from -1 to 1. Two baselines must be beaten: random
# numbers, and a spot in the middle of the image (a centre Gaussian).
#
# **Predict.** Which of the five is the most faithful to "tiger cat"? Is it the one that looks
# best? Where are the baselines?
# %% [fr]
# ## Les méthodes comparées, et la fidélité
#
# L'outil a onze méthodes. Une façon de les juger sans connaître la vérité : couvrir les patchs que
# la carte dit importants, et voir si la probabilité baisse (puis ne montrer que ceux-là, et voir
# si elle monte). `faithfulness()` (fidélité) fait les deux, de -1 à 1. Il y a deux références à
# battre : des nombres au hasard, et une tache au milieu de l'image (une gaussienne centrée).
#
# **Prédire.** Laquelle des cinq est la plus fidèle à « tiger cat » ? Est-ce celle qui a l'air la
# meilleure ? Et où sont les références ?
# %%
methods = ("grad_rollout", "relevance", "legrad", "gradcam", "attnlrp")
found = {name: explain(photograph, "tiger cat", model=loaded, method=name) for name in methods}
scores = {name: each.faithfulness() for name, each in found.items()}
flat = {"rollout (no category)": refined.map}
show(flat | {f"{name}: {scores[name]:.2f}": each.map for name, each in found.items()}, 3)

rows, columns = np.mgrid[:14, :14] - 6.5
baselines = {"centre": np.exp(-(rows**2 + columns**2) / 2 / 3.5**2).astype(np.float32)}
baselines["random"] = np.random.default_rng(0).random((14, 14), np.float32)
cat = found["relevance"].category.index
for name, of_patches in baselines.items():
    scores[name] = faithfulness(model, image[0], of_patches, cat)
print({name: round(score, 3) for name, score in scores.items()})
figure, axis = plt.subplots(figsize=(7, 2.5), constrained_layout=True)
axis.barh(list(scores), list(scores.values()))
axis.axvline(0, color="black")
axis.set_title("faithfulness")
plt.show()

# %% [en]
# **See.** All five beat both baselines; four of them are so close that one image can't rank them,
# although they look different. Rankings need many images: `python vit_explain.py --evaluate`, and
# [how faithful maps are](../../docs/faithfulness.md).
#
# **Remember.** Rollout follows attention, and leaves out values, MLPs and norms: a bright patch
# was *within reach*, it need not have decided anything. What a map can't tell is measured
# otherwise: lesson 8.
# %% [fr]
# **Voir.** Toutes les cinq battent les deux références ; quatre sont si proches qu'une seule image
# ne peut les classer, bien qu'elles n'aient pas le même air. Un classement demande beaucoup
# d'images : `python vit_explain.py --evaluate`, et [la fidélité des
# cartes](../../docs/faithfulness.md).
#
# **À retenir.** Le rollout suit l'attention, et laisse de côté les valeurs, les MLP et les
# normalisations : un patch brillant était *à portée*, il n'a pas forcément décidé. Ce qu'une carte
# ne peut pas dire se mesure autrement : c'est la leçon 8.
