# %% [en]
# # 7. What did it look at?
#
# Attention matrices are maps of one block. To see through all of them, we multiply. Then we ask for one category,
# and at last whether any of these maps is true.
# %% [fr]
# # 7. Qu’a-t-il regardé ?
#
# Une matrice d’attention est la carte d’un seul bloc. Pour voir à travers tous, on multiplie. Puis nous demandons une
# catégorie précise, et enfin si l’une de ces cartes dit vrai.
# %%
import os
import sys
from pathlib import Path

root = next(p for p in (Path.cwd(), *Path.cwd().parents) if (p / "vit_explain.py").exists())
sys.path.insert(0, str(root))
os.chdir(root)

import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image

from vitexplain import explain, load_model
from vit_rollout import rollout

plt.rcParams["figure.constrained_layout.use"] = True
loaded = load_model("bundled")
model = loaded.model
image = Image.open("examples/both.png").convert("RGB")


def draw(maps, size=2.6):
    """Each map over the image."""
    _, axes = plt.subplots(1, len(maps), figsize=(size * len(maps), size))
    for axis, (name, values) in zip(axes, maps.items()):
        axis.imshow(image.resize((224, 224)))
        axis.imshow(values, extent=(0, 224, 224, 0), alpha=0.6, cmap="turbo")
        axis.set_title(name, fontsize=9)
        axis.axis("off")
    plt.show()


# %% [en]
# ## Catching attention
#
# In timm the softmaxed matrix passes through a module called `attn_drop`, unless attention is computed *fused*, where
# there is no matrix to see. So we switch that off, hook the module, and put everything back.
# %% [fr]
# ## Attraper l’attention
#
# Dans timm, la matrice sortie de la softmax passe par un module appelé `attn_drop`, sauf si l’attention est calculée
# *fusionnée* : il n’y a alors pas de matrice à voir. Nous coupons donc cela, accrochons une fonction au module (hook),
# et remettons tout en place.
# %%
x = loaded.transform(image)[None]
matrices, hooks = [], []
fused = [block.attn.fused_attn for block in model.blocks]
for block in model.blocks:
    block.attn.fused_attn = False
    hooks.append(block.attn.attn_drop.register_forward_hook(lambda m, i, out: matrices.append(out)))
with torch.inference_mode():
    logits = model(x)
for hook, block, before in zip(hooks, model.blocks, fused):
    hook.remove()
    block.attn.fused_attn = before
print(len(matrices), "blocks,", tuple(matrices[0].shape))
draw({f"block {n + 1}": m[0].mean(0)[0, 1:].reshape(14, 14) for n, m in enumerate(matrices)})


# %% [en]
# ## Rollout: three products
#
# A token of block 2 attends to tokens that are already mixtures. What reaches the class token through both is the
# product of the matrices. The identity stands for the sum around each block, rows are divided by their sums, and the
# class token's row is the map (Abnar & Zuidema 2020). **Predict:** does the product look more like the first block's
# map, or like the last one's?
# %% [fr]
# ## Le rollout : trois produits
#
# Un token du bloc 2 regarde des tokens qui sont déjà des mélanges. Ce qui atteint le token de classe à travers les deux
# est le produit des matrices. L’identité représente la somme autour de chaque bloc, les lignes sont divisées par leur
# somme, et la ligne du token de classe est la carte (Abnar & Zuidema 2020). **Prédisez :** le produit ressemble-t-il
# plutôt à la carte du premier bloc ou à celle du dernier ?
# %%
def with_identity(matrix):  # (1, H, N, N) -> (N, N)
    matrix = matrix[0].mean(dim=0) + torch.eye(197)
    return matrix / matrix.sum(dim=1, keepdim=True)


a1, a2, a3, a4 = map(with_identity, matrices)
product = a4 @ a3 @ a2 @ a1
assert torch.allclose(product.sum(dim=1), torch.ones(197), atol=1e-5)
by_hand = product[0, 1:].reshape(14, 14)
by_hand = by_hand / by_hand.max()

assert np.allclose(by_hand, rollout(matrices, discard_ratio=0, head_fusion="mean")[0], atol=1e-5)
tool = explain(image, model=loaded, head_fusion="mean", discard_ratio=0.0)
assert np.allclose(by_hand, tool.map, atol=1e-4)

variants = {"by hand": by_hand}
for fusion, ratio in (("mean", 0.9), ("max", 0.0), ("max", 0.9), ("min", 0.9)):
    found = explain(image, model=loaded, head_fusion=fusion, discard_ratio=ratio)
    variants[f"{fusion}, discard {ratio}"] = found.map
draw(variants)
# %% [en]
# The tool's map is ours, to rounding. The others are the *same model and image* with other settings: how heads are
# fused, and how many of the weakest paths are dropped. If a detail appears in only one of them, it is the setting's, not
# the model's.
#
# ## One category
#
# **Predict:** can rollout tell where the *dog* is and where the *cat* is?
# %% [fr]
# La carte de l’outil est la nôtre, aux arrondis près. Les autres sont *le même modèle et la même image* avec d’autres
# réglages : comment les têtes sont fusionnées, et combien des chemins les plus faibles sont écartés. Un détail qui
# n’apparaît que dans l’une d’elles vient du réglage, non du modèle.
#
# ## Une catégorie
#
# **Prédisez :** le rollout peut-il dire où est le *chien* et où est le *chat* ?
# %%
dog, cat = "bull mastiff", "tiger cat"
maps = {"rollout": explain(image, model=loaded)}
for category in (dog, cat):
    for method in ("grad_rollout", "gradcam"):
        maps[f"{method}, {category}"] = explain(image, category, model=loaded, method=method)
draw({name: found.map for name, found in maps.items()})

right_half = {name: found.map[:, 7:].sum() / found.map.sum() for name, found in maps.items()}
for name, share in right_half.items():
    print(f"{name}: {share:.2f} of the map on the cat's half")
assert right_half[f"grad_rollout, {cat}"] > 0.5 > right_half[f"grad_rollout, {dog}"]
# %% [en]
# It can't: its map has no category in it. *Gradient rollout* weights each matrix with the gradient of one category's
# logit, keeps what is positive, and multiplies as before.
#
# ## Which map is true?
#
# They differ, so they can't all be. A test: show the model the brightest patches of a map first, and see how fast the
# answer comes; then hide them first, and see how fast it goes. The difference of the two areas is the map's
# *faithfulness*. **Predict:** which of these is the most faithful for this image: rollout, gradient rollout, Grad-CAM,
# or a random map?
# %% [fr]
# Il ne le peut pas : sa carte ne contient aucune catégorie. Le *rollout par gradient* pondère chaque matrice par le
# gradient du logit d’une catégorie, garde ce qui est positif, et multiplie comme avant.
#
# ## Quelle carte dit vrai ?
#
# Elles diffèrent : elles ne peuvent pas toutes dire vrai. Un test : montrer d’abord au modèle les patches les plus clairs
# d’une carte, et voir à quelle vitesse vient la réponse ; puis les cacher d’abord, et voir à quelle vitesse elle s’en va.
# La différence des deux aires est la *fidélité* de la carte. **Prédisez :** laquelle est ici la plus fidèle : le rollout,
# le rollout par gradient, Grad-CAM, ou une carte au hasard ?
# %%
from vitexplain.faithfulness.score import faithfulness

index = loaded.category_index(cat)
noise = np.random.default_rng(0).random((14, 14)).astype(np.float32)
candidates = {
    "random": noise,
    "rollout": maps["rollout"].map,
    "grad_rollout": maps[f"grad_rollout, {cat}"].map,
    "gradcam": maps[f"gradcam, {cat}"].map,
}
scores = {name: faithfulness(model, x[0], found, index) for name, found in candidates.items()}
figure, axis = plt.subplots(figsize=(6, 2.4))
axis.barh(list(scores), list(scores.values()))
axis.axvline(0, color="black", linewidth=1)
axis.set(xlabel=f"faithfulness for “{cat}”")
plt.show()
assert max(scores, key=scores.get) != "random"
# %% [en]
# One image is an example, not a result. Over many images the order is in
# [docs/faithfulness.md](../../docs/faithfulness.md), with intervals. For your own: `python vit_explain.py --image_path …
# --compare` measures all methods, and `--explore` gives you [a page](../../docs/explore.md) in which you can point at
# every patch.
#
# And what no map says: *why*. A bright patch mattered, by some rule. What the model made of it, you don't see.
# %% [fr]
# Une image est un exemple, non un résultat. L’ordre sur beaucoup d’images est dans
# [docs/faithfulness.md](../../docs/faithfulness.md), avec des intervalles. Pour les vôtres : `python vit_explain.py
# --image_path … --compare` mesure toutes les méthodes, et `--explore` fait [une page](../../docs/explore.md) où l’on peut
# pointer chaque patch.
#
# Et ce qu’aucune carte ne dit : *pourquoi*. Un patch clair a compté, selon une certaine règle. Ce que le modèle en a fait,
# vous ne le voyez pas.
