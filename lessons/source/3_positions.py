# %% [en]
# # 3 · Positions and the class token
#
# Two things are added to the patches before the first block: one more token, the *class token*,
# and to each token a vector that says where it stands. Nearly all confusion about `x[:, 0]` starts
# here.
#
# The bundled model does both exactly as a plain ViT does; only its patches come from a CNN.
# %% [fr]
# # 3 · Positions et jeton de classe
#
# Avant le premier bloc, on ajoute deux choses aux patchs : un token de plus, le *jeton de classe*
# (class token), et à chaque token un vecteur qui dit où il se trouve. C'est d'ici que vient
# presque toute la confusion autour de `x[:, 0]`.
#
# Le modèle fourni fait les deux exactement comme un ViT simple ; seuls ses patchs viennent d'un
# CNN.
# %%
import matplotlib.pyplot as plt
import torch
from PIL import Image
from torch.nn import functional as F

from vitexplain import load_model
import timm

loaded = load_model("bundled")
model = loaded.model
photographs = [Image.open(f"examples/{name}.jpg").convert("RGB") for name in ("panda", "coffee")]
images = torch.stack([loaded.transform(each) for each in photographs])  # (2, 3, 224, 224)

# %% [en]
# ## What is `x[:, 0]`?
#
# **Predict.** We give the model a panda and a cup of coffee. Before the first block, do the two
# images have the same `x[:, 0]`? And after the last one?
# %% [fr]
# ## Qu'est-ce que `x[:, 0]` ?
#
# **Prédire.** Nous donnons au modèle un panda et une tasse de café. Avant le premier bloc, les
# deux images ont-elles le même `x[:, 0]` ? Et après le dernier ?
# %%
with torch.inference_mode():
    x = model._pos_embed(model.patch_embed(images))
    print("tokens:", tuple(x.shape))  # 1 + 14 * 14 of them, each of 256 numbers
    assert torch.equal(x[0, 0], x[1, 0])  # no pixel has gone into it
    assert not torch.equal(x[0, 1], x[1, 1])  # the first patch
    similar = [F.cosine_similarity(x[0, 0], x[1, 0], dim=0).item()]
    for block in model.blocks:
        x = block(x)
        similar.append(F.cosine_similarity(x[0, 0], x[1, 0], dim=0).item())
    assert torch.allclose(model.head(model.norm(x)[:, 0]), model(images), atol=1e-4)

figure, axis = plt.subplots(figsize=(6, 3), constrained_layout=True)
axis.plot(similar, marker="o")
axis.set_xlabel("block")
axis.set_xticks(range(5))
axis.set_title("x[:, 0]: cosine, panda and coffee")
plt.show()

# %% [en]
# **See.** `x[:, 0]` is **not** the first patch: it is the class token, a learned vector that is
# the same for every image. The first patch is `x[:, 1]`. From block to block, the class token
# gathers what it needs from the patches, and the two images are no longer alike. Why is the head
# allowed to read it alone? Because training has rewarded the class token for collecting, by
# attention, everything that the head needs. (A model without one averages the patches:
# `global_pool="avg"`.)
# %% [fr]
# **Voir.** `x[:, 0]` n'est **pas** le premier patch : c'est le jeton de classe, un vecteur appris,
# le même pour toutes les images. Le premier patch est `x[:, 1]`. De bloc en bloc, le jeton de
# classe recueille auprès des patchs ce qu'il lui faut, et les deux images cessent de se
# ressembler. Pourquoi la tête peut-elle se contenter de lui ? Parce que l'entraînement l'a
# récompensé de rassembler, par l'attention, tout ce dont elle a besoin. (Un modèle qui n'en a pas
# fait la moyenne des patchs : `global_pool="avg"`.)

# %% [en]
# ## Class token first, or positions first?
#
# **Predict.** `pos_embed` has the shape (1, 197, 256). So which is done first: putting the class
# token in front, or adding the positions?
# %% [fr]
# ## D'abord le jeton de classe, ou d'abord les positions ?
#
# **Prédire.** `pos_embed` a la forme (1, 197, 256). Que fait-on donc en premier : placer le jeton
# de classe devant, ou ajouter les positions ?
# %%
with torch.inference_mode():
    patches = model.patch_embed(images)  # (2, 196, 256)
    class_token = model.cls_token.expand(2, -1, -1)  # (2, 1, 256)
    by_hand = torch.cat([class_token, patches], dim=1) + model.pos_embed
    assert torch.equal(by_hand, model._pos_embed(patches))
print(tuple(patches.shape), "->", tuple(by_hand.shape))

figure, axes = plt.subplots(1, 3, figsize=(12, 3.5), constrained_layout=True)
parts = {"patches": patches[0], "pos_embed": model.pos_embed[0].detach(), "sum": by_hand[0]}
for axis, (name, part) in zip(axes, parts.items(), strict=True):
    drawn = axis.imshow(part[:20, :60], cmap="RdBu", vmin=-1, vmax=1)
    axis.set_title(f"{name}: {len(part)} tokens, the first 20")
    axis.set_xlabel("dimension")
axes[0].set_ylabel("token")
figure.colorbar(drawn, ax=axes)
plt.show()

# %% [en]
# **See.** The class token first, then the positions: 197 = 1 + 196, so that the class token has a
# position embedding of its own, `pos_embed[:, 0]`. Both are learned and constant, and could as
# well be one vector. Some models (DeiT III; `no_embed_class=True` in timm) add positions to the
# patches first, and then have 196 of them. To know which, count.
# %% [fr]
# **Voir.** D'abord le jeton de classe, puis les positions : 197 = 1 + 196, de sorte que le jeton
# de classe a son propre plongement de position, `pos_embed[:, 0]`. Les deux sont appris et
# constants, et pourraient ne faire qu'un seul vecteur. Certains modèles (DeiT III ;
# `no_embed_class=True` dans timm) ajoutent d'abord les positions aux patchs, et n'en ont alors que
# 196. Pour savoir, comptez.

# %% [en]
# ## A transformer without positions
#
# **Predict.** We shuffle the panda's 196 patch tokens. What happens to the prediction without
# position embeddings, and with them?
# %% [fr]
# ## Un transformer sans positions
#
# **Prédire.** Nous mélangeons les 196 tokens du panda. Que devient la prédiction sans plongements
# de position, et avec eux ?
# %%
order = torch.randperm(196, generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def logits(patches, positions):
    x = torch.cat([model.cls_token, patches], dim=1) + positions
    return model.head(model.norm(model.blocks(x))[:, 0])


panda, none = patches[:1], torch.zeros_like(model.pos_embed)
results = {
    "positions": logits(panda, model.pos_embed),
    "positions, shuffled": logits(panda[:, order], model.pos_embed),
    "none": logits(panda, none),
    "none, shuffled": logits(panda[:, order], none),
}
assert torch.allclose(results["none"], results["none, shuffled"], atol=1e-3)
probabilities = [each.softmax(dim=1)[0, 388].item() for each in results.values()]
figure, axis = plt.subplots(figsize=(7, 3), constrained_layout=True)
axis.bar(list(results), probabilities)
axis.set_title("giant panda: probability")
plt.show()
print([f"{name}: {value:.3f}" for name, value in zip(results, probabilities, strict=True)])
print("largest change of a logit, shuffled:")
print(
    "  with positions", (results["positions"] - results["positions, shuffled"]).abs().max().item()
)
print("  without       ", (results["none"] - results["none, shuffled"]).abs().max().item())

# %% [en]
# **See.** Without positions, shuffling changes nothing but rounding: attention is a sum over a
# *set*. With positions it does, but in this model only in the second decimal of the logits, and
# with none at all the panda stays a panda. The bundled model is a hybrid: its CNN has already
# written the shape of things into each token, and its tokens are far longer than its position
# embeddings. A plain ViT, whose tokens know 16 × 16 pixels each, has no other way to know what
# lies next to what.
# %% [fr]
# **Voir.** Sans positions, le mélange ne change rien, aux arrondis près : l'attention est une
# somme sur un *ensemble*. Avec positions, il change quelque chose, mais dans ce modèle seulement à
# la deuxième décimale des logits, et sans aucune position le panda reste un panda. Le modèle
# fourni est un hybride : son CNN a déjà inscrit la forme des choses dans chaque token, et ses
# tokens sont bien plus longs que ses plongements de position. Un ViT simple, dont chaque token ne
# connaît que 16 × 16 pixels, n'a pas d'autre moyen de savoir ce qui est à côté de quoi.

# %% [en]
# ## Why do position embeddings start near zero?
#
# timm draws them with a standard deviation of 0.02 (others start at exactly zero). We take a fresh
# `vit_tiny_patch16_224` and try larger ones.
#
# **Predict.** The panda's and the coffee's tokens at the same place: how similar are they (cosine)
# if the position embeddings are small? If they are large?
# %% [fr]
# ## Pourquoi les plongements de position partent-ils de presque zéro ?
#
# timm les tire avec un écart-type de 0,02 (d'autres partent exactement de zéro). Prenons un
# `vit_tiny_patch16_224` tout neuf, et essayons-en de plus grands.
#
# **Prédire.** Les tokens du panda et du café, à la même place : à quel point se ressemblent-ils
# (cosinus) si les plongements de position sont petits ? Et s'ils sont grands ?
# %%
torch.manual_seed(0)
fresh = timm.create_model("vit_tiny_patch16_224")
print("fresh: deviation of pos_embed", round(fresh.pos_embed.std().item(), 3))
deviations = [0, 0.02, 0.2, 1]
with torch.inference_mode():
    tokens = fresh.patch_embed(images)
    noise = torch.randn(1, 196, 192)
    cosines = []
    for deviation in deviations:
        panda, coffee = tokens + deviation * noise
        cosines.append(F.cosine_similarity(panda, coffee, dim=-1).mean().item())
print("deviation of the patch tokens:", round(tokens.std().item(), 3))
print({deviation: round(cosine, 2) for deviation, cosine in zip(deviations, cosines, strict=True)})

figure, axis = plt.subplots(figsize=(6, 3), constrained_layout=True)
axis.bar([str(each) for each in deviations], cosines)
axis.set_xlabel("deviation of the position embeddings")
axis.set_title("cosine, panda and coffee")
plt.show()

# %% [en]
# **See.** At 0.02, tokens say what is *in* the image; at 1, panda and coffee are nearly the same
# vector, and the place drowns out the content. Starting small (or at zero) lets the content speak
# first, and leaves it to training how much place is worth. Zero is allowed, because the patches
# differ, and so do the gradients that each position gets.
# %% [fr]
# **Voir.** À 0,02, les tokens disent ce qu'il y a *dans* l'image ; à 1, panda et café sont presque
# le même vecteur, et la place étouffe le contenu. Partir petit (ou de zéro) laisse d'abord parler
# le contenu, et laisse l'entraînement décider de ce que vaut la place. Zéro est permis, car les
# patchs diffèrent, et donc aussi les gradients que reçoit chaque position.

# %% [en]
# ## What training has made of them
#
# **Predict.** Take the position embedding of one patch, and its cosine with those of all 196.
# Where is it large: at the neighbours, in the same row and column, or somewhere else?
# %% [fr]
# ## Ce que l'entraînement en a fait
#
# **Prédire.** Prenez le plongement de position d'un patch, et son cosinus avec ceux des 196
# patchs. Où est-il grand : chez les voisins, dans la même ligne et la même colonne, ou ailleurs ?
# %%
positions = model.pos_embed[0, 1:].detach()  # without the class token's
positions = F.normalize(positions - positions.mean(dim=0), dim=-1)  # what all share tells nothing
similarity = (positions @ positions.T).reshape(14, 14, 14, 14)
figure, axes = plt.subplots(4, 4, figsize=(7, 7), constrained_layout=True)
for row, axes_of_row in zip((1, 5, 8, 12), axes, strict=True):
    for column, axis in zip((1, 5, 8, 12), axes_of_row, strict=True):
        axis.imshow(similarity[row, column], cmap="viridis", vmin=-1, vmax=1)
        axis.set_title(f"row {row}, column {column}", fontsize=8)
        axis.axis("off")
plt.show()

# %% [en]
# **See.** Patches next to each other have similar positions, though nobody has told the model what
# "next to" means: it has learned it. But look at the corners: they resemble *each other*. This
# hybrid has learned above all how far the border is. A plain ViT, trained for long, learns rows
# and columns (Dosovitskiy et al. 2021, figure 7); `python vit_explain.py --anatomy` draws this
# figure for any ViT that has such embeddings.
#
# **Remember.** `x[:, 0]` is the class token, `x[:, 1]` the first patch; whatever has 197 rows has
# the class token in it.
# %% [fr]
# **Voir.** Des patchs voisins ont des positions semblables, bien que personne n'ait dit au modèle
# ce que « voisin » veut dire : il l'a appris. Mais regardez les coins : ils se ressemblent *entre
# eux*. Cet hybride a surtout appris à quelle distance est le bord. Un ViT simple, longuement
# entraîné, apprend lignes et colonnes (Dosovitskiy et al. 2021, figure 7) ;
# `python vit_explain.py --anatomy` dessine cette figure pour tout ViT qui a de tels plongements.
#
# **À retenir.** `x[:, 0]` est le jeton de classe, `x[:, 1]` le premier patch ; tout ce qui a 197
# lignes contient le jeton de classe.
