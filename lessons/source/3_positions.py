# %% [en]
# # 3. Positions and the class token
#
# A list of tokens has no above and no left. And in the end, one vector must stand for the whole image. A
# ViT solves both by adding something that it learns: a position to every token, and one more token.
# %% [fr]
# # 3. Les positions et le token de classe
#
# Une liste de tokens n’a ni haut ni gauche. Et à la fin, un seul vecteur doit représenter toute l’image. Un
# ViT résout les deux en ajoutant quelque chose qu’il apprend : une position à chaque token, et un token de
# plus.
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
from torch.nn import functional as F

from vitexplain import load_model
import timm

plt.rcParams["figure.constrained_layout.use"] = True
loaded = load_model("bundled")
model = loaded.model
image = Image.open("examples/dog.jpg").convert("RGB")
x = loaded.transform(image)[None]
# %% [en]
# ## One token more
#
# **Predict:** `tokens[:, 0]` is what the classifier reads in the end. Is it the patch in the upper left
# corner?
# %% [fr]
# ## Un token de plus
#
# **Prédisez :** `tokens[:, 0]` est ce que le classifieur lit à la fin. Est-ce le patch en haut à gauche ?
# %%
with torch.inference_mode():
    patches = model.patch_embed(x)  # (1, 196, 256)
    tokens = torch.cat([model.cls_token, patches], dim=1) + model.pos_embed  # (1, 197, 256)
    assert torch.allclose(tokens, model._pos_embed(patches), atol=1e-6)  # as timm does it
    other = model.patch_embed(torch.zeros_like(x))
    assert torch.equal(tokens[:, 0], model._pos_embed(other)[:, 0])
print(tuple(patches.shape), "->", tuple(tokens.shape))


# %% [en]
# No. A vector of its own, the *class token*, is put in front of the patches: `tokens[:, 0]` is that one,
# and the upper left patch is `tokens[:, 1]`. Before the first block the class token is the same for every
# image, black ones too. All that it knows in the end, it has gathered from the patches.
#
# It is put there *before* the positions are added, so there are 197 positions, one of them its own. (Some
# models of timm do it the other way round: `no_embed_class`.)
#
# ## Without positions, order is lost
#
# **Predict:** leave the positions out and shuffle the patches. What happens to the answer?
# %% [fr]
# Non. Un vecteur à part, le *token de classe*, est placé devant les patches : c’est lui, `tokens[:, 0]`, et
# le patch en haut à gauche est `tokens[:, 1]`. Avant le premier bloc, le token de classe est le même pour
# toutes les images, même noires. Tout ce qu’il sait à la fin, il l’a recueilli auprès des patches.
#
# Il est placé là *avant* l’ajout des positions : il y a donc 197 positions, dont une pour lui. (Certains
# modèles de timm font l’inverse : `no_embed_class`.)
#
# ## Sans positions, l’ordre se perd
#
# **Prédisez :** on retire les positions et on mélange les patches. Qu’arrive-t-il à la réponse ?
# %%
def answer(patches, positions):
    with torch.inference_mode():
        tokens = torch.cat([model.cls_token, patches], dim=1) + positions
        return model.head(model.norm(model.blocks(tokens))[:, 0]).softmax(-1)[0]


shuffled = patches[:, torch.randperm(196, generator=torch.Generator().manual_seed(0))]
nowhere = torch.zeros_like(model.pos_embed)
assert torch.allclose(answer(patches, nowhere), answer(shuffled, nowhere), atol=1e-5)

answers = {
    "with positions": answer(patches, model.pos_embed),
    "with positions, shuffled": answer(shuffled, model.pos_embed),
    "without": answer(patches, nowhere),
    "without, shuffled": answer(shuffled, nowhere),
}
figure, axes = plt.subplots(1, 4, figsize=(13, 3), sharey=True)
for axis, (name, probabilities) in zip(axes, answers.items()):
    top = probabilities.topk(3)
    axis.bar([loaded.categories[i].split(",")[0][:16] for i in top.indices], top.values)
    axis.tick_params(axis="x", rotation=45)
    axis.set_title(name, fontsize=10)
plt.show()
# %% [en]
# Without positions a shuffled image gives *exactly* the same answer: attention compares tokens with each
# other, and a sum over tokens has no order. Only the positions tell the model where things were.
#
# This model hardly uses them: shuffled *with* positions, its answer changes little, too. Its tokens come from
# convolutions, which have seen whole parts of the dog already, so that a heap of parts is enough to tell a
# breed. A model that cuts raw patches loses more.
#
# ## What positions learn
#
# Positions are free vectors, 197 of them. **Predict:** after training, which positions are similar to that of
# a patch in the middle: those of its row, of its column, its neighbours, or none?
# %% [fr]
# Sans positions, une image mélangée donne *exactement* la même réponse : l’attention compare les tokens
# entre eux, et une somme sur les tokens n’a pas d’ordre. Seules les positions disent au modèle où étaient
# les choses.
#
# Ce modèle s’en sert à peine : mélangée *avec* positions, l’image donne presque la même réponse. Ses tokens
# viennent de convolutions, qui ont déjà vu des parties entières du chien : un tas de parties suffit pour
# reconnaître une race. Un modèle qui découpe des patches bruts y perd davantage.
#
# ## Ce que les positions apprennent
#
# Les positions sont des vecteurs libres, au nombre de 197. **Prédisez :** après l’entraînement, quelles
# positions ressemblent à celle d’un patch du milieu : celles de sa ligne, de sa colonne, ses voisines, ou
# aucune ?
# %%
directions = F.normalize(
    model.pos_embed[0, 1:].detach(), dim=1
)  # (196, 256), without the class token's
similarity = (directions @ directions.T).reshape(14, 14, 14, 14)
figure, axes = plt.subplots(1, 4, figsize=(12, 3))
for axis, (row, column) in zip(axes, ((1, 1), (1, 12), (7, 7), (12, 4))):
    drawn = axis.imshow(similarity[row, column], vmin=-1, vmax=1, cmap="RdBu_r")
    axis.scatter(column, row, marker="x", color="black")
    axis.axis("off")
figure.colorbar(drawn, ax=axes, label="cosine")
plt.show()
near = torch.stack([similarity[7, 7, 7, 8], similarity[7, 7, 8, 7]]).mean()
far = torch.stack([similarity[7, 7, 0, 0], similarity[7, 7, 13, 13]]).mean()
print(f"neighbours {near:.2f}, corners {far:.2f}")
assert near > far
# %% [en]
# Nobody told the model that patches form a grid. It found out: neighbours have similar positions. What this
# model tells apart most is the border of the image from its middle.
#
# Why do positions begin close to zero? In a fresh model they are drawn with a deviation of 0.02, as small as
# the patches' own beginning: at first the model looks at what is there, and learns where later. Positions
# that begin large would drown the patches.
# %% [fr]
# Personne n’a dit au modèle que les patches forment une grille. Il l’a trouvé : les voisins ont des positions
# semblables. Ce que ce modèle distingue le mieux, c’est le bord de l’image de son milieu.
#
# Pourquoi les positions commencent-elles près de zéro ? Dans un modèle neuf, elles sont tirées avec un
# écart-type de 0,02, assez petit pour ne pas couvrir les patches : le modèle regarde d’abord ce qu’il y a, et
# apprend ensuite où. Des positions grandes au départ noieraient les patches.
# %%
torch.manual_seed(0)
fresh = timm.create_model("vit_tiny_patch16_224")
deviations = {
    "fresh positions": fresh.pos_embed.std().item(),
    "fresh patches": fresh.patch_embed(x).std().item(),
    "trained positions": model.pos_embed.std().item(),
    "trained patches": patches.std().item(),
}
figure, axis = plt.subplots(figsize=(6, 2.5))
axis.barh(list(deviations), list(deviations.values()))
axis.set(xlabel="standard deviation", xscale="log")
plt.show()
assert deviations["fresh positions"] < deviations["fresh patches"]
