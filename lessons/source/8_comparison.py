# %% [en]
# # 8. CNN, ViT, hybrid, and a medical case
#
# When is a Vision Transformer the better choice? What a convolution knows by design, a transformer must learn: that is
# its freedom, and its hunger for data.
# %% [fr]
# # 8. CNN, ViT, hybride, et un cas médical
#
# Quand un Vision Transformer est-il le meilleur choix ? Ce qu’une convolution sait par construction, un transformer doit
# l’apprendre : c’est sa liberté, et sa faim de données.
# %%
import dataclasses
import os
import sys
from pathlib import Path

root = next(p for p in (Path.cwd(), *Path.cwd().parents) if (p / "vit_explain.py").exists())
sys.path.insert(0, str(root))
os.chdir(root)

import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import nn

import vitexplain  # before timm
from timm.models.vision_transformer import VisionTransformer

plt.rcParams["figure.constrained_layout.use"] = True
# %% [en]
# ## How far does one layer see?
#
# We take the output in the middle and ask by its gradient which pixels can change it. **Predict** the answer for three
# convolutions of 3 × 3, and for one block of attention.
# %% [fr]
# ## Jusqu’où voit une couche ?
#
# Nous prenons la sortie du milieu et demandons à son gradient quels pixels peuvent la changer. **Prédisez** la réponse
# pour trois convolutions de 3 × 3, et pour un bloc d’attention.
# %%
torch.manual_seed(0)
side = 64
convolutions = nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(3)))
vit = VisionTransformer(img_size=side, patch_size=8, embed_dim=48, depth=1, num_heads=4)


def seen_by_convolutions(x):
    return convolutions(x)[0, :, side // 2, side // 2].sum()


def seen_by_attention(x):
    tokens = vit.blocks(vit._pos_embed(vit.patch_embed(x)))
    return tokens[0, 1 + 4 * 8 + 4].sum()  # the patch in row 5, column 5 of 8 x 8


reach = {}
for name, output in (("3 convolutions", seen_by_convolutions), ("1 block", seen_by_attention)):
    x = torch.randn(1, 3, side, side, requires_grad=True)
    output(x).backward()
    reach[name] = (x.grad[0].abs().sum(0) > 0).numpy()
figure, axes = plt.subplots(1, 2, figsize=(6, 3))
for axis, (name, seen) in zip(axes, reach.items()):
    axis.imshow(seen, vmin=0, vmax=1)
    axis.set_title(f"{name}: {seen.sum()} pixels")
plt.show()
assert reach["3 convolutions"].sum() == 7 * 7
assert reach["1 block"].all()
# %% [en]
# A convolution only sees neighbours, and uses the same weights everywhere: two assumptions that are true of images, the
# *inductive bias*. A ViT sees everything at once and assumes neither.
#
# ## The measured comparison
#
# Three models of about one size learned the same 4,000 thumbnails of 200 categories from scratch
# ([docs/training.md](../../docs/training.md)); chance is 0.005. **Predict** their order.
# %% [fr]
# Une convolution ne voit que ses voisins, et emploie partout les mêmes poids : deux hypothèses vraies des images, le *biais
# inductif*. Un ViT voit tout à la fois et ne suppose ni l’une ni l’autre.
#
# ## La comparaison mesurée
#
# Trois modèles d’à peu près la même taille ont appris de zéro les mêmes 4 000 vignettes de 200 catégories
# ([docs/training.md](../../docs/training.md)) ; le hasard donne 0,005. **Prédisez** leur ordre.
# %%
rows = [
    line.split("|")[1:-1]
    for line in Path("docs/training.md").read_text(encoding="utf-8").splitlines()
    if line.startswith(("| CNN", "| ViT", "| hybrid"))
]
names = [row[0].strip() for row in rows]
values = [[float(word.strip("()")) for word in row[3].replace(" to ", " ").split()] for row in rows]
top1, low, high = (np.array(column) for column in zip(*values))
figure, axis = plt.subplots(figsize=(5, 2.2))
axis.errorbar(top1, names, xerr=[top1 - low, high - top1], fmt="o", capsize=4)
axis.set(xlabel="top-1 on 2,000 other thumbnails, 95 % interval", xlim=0)
axis.invert_yaxis()
plt.show()
# %% [en]
# With so few images the CNN learns most, and nobody learns much: start from pretrained weights (lesson 6). With many
# millions the order turns round (Dosovitskiy et al. 2021). The *hybrid* lets convolutions make the tokens; the bundled
# model is one.
#
# ## A medical case
#
# White blood cells, five kinds, from microscope slides ([docs/medical.md](../../docs/medical.md)). A model fine-tuned on
# them was right in 8 of 10 images of a random split, and in far fewer from other slides. Why? We rebuild the mechanism with
# drawn cells: two kinds, whose nuclei differ a little in size, on slides whose stain differs much, as real stains do. As in the
# real data, a slide holds mostly one kind.
# %% [fr]
# Avec si peu d’images, c’est le CNN qui apprend le plus, et personne n’apprend beaucoup : partez de poids préentraînés
# (leçon 6). Avec des millions d’images, l’ordre s’inverse (Dosovitskiy et al. 2021). L’*hybride* fait faire ses tokens par
# des convolutions ; le modèle fourni en est un.
#
# ## Un cas médical
#
# Des globules blancs, de cinq sortes, sur des lames de microscope ([docs/medical.md](../../docs/medical.md)). Un modèle
# adapté à ces images avait raison pour 8 images sur 10 d’un partage au hasard, et pour bien moins venant d’autres lames.
# Pourquoi ? Nous reconstruisons le mécanisme avec des cellules dessinées : deux sortes, dont les noyaux diffèrent un peu de taille,
# sur des lames dont la coloration diffère beaucoup, comme dans la réalité. Comme dans les vraies données, une lame contient surtout une
# sorte.
# %%
KINDS = ("large", "small")


def cell(kind, tint, rng, side=112):
    noise = rng.normal(0, 6, (side, side, 3))
    image = Image.fromarray((np.array(tint) + noise).clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    x, y = (int(v) for v in rng.integers(30, side - 30, 2))
    draw.ellipse((x - 22, y - 22, x + 22, y + 22), fill=tuple(int(0.9 * v) for v in tint))
    radius = float((13, 11)[kind] + rng.normal(0, 0.5))
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(90, 60, 140))
    return image, (x - 22, y - 22, x + 22, y + 22)


rng = np.random.default_rng(1)
tints = [tuple(rng.integers(150, 250, 3).tolist()) for _ in range(12)]  # a stain for each slide
slides = np.repeat(np.arange(12), 20)  # 20 cells of each slide; slides 8 to 11 come later
kinds = np.where(slides < 8, slides % 2, np.arange(240) % 2)  # on the later ones both kinds
made = [cell(kind, tints[slide], rng) for kind, slide in zip(kinds, slides)]
cells = [image for image, _ in made]

figure, axes = plt.subplots(2, 8, figsize=(11, 3))
for slide in range(8):
    for axis, place in zip(axes[:, slide], np.flatnonzero(slides == slide)):
        axis.imshow(cells[place])
        axis.axis("off")
    axes[0, slide].set_title(f"slide {slide}: {KINDS[slide % 2]}", fontsize=8)
plt.show()
# %% [en]
# We keep the bundled model as it is, take what its head reads of each cell, and train a new head only: a *linear probe*, the
# quickest kind of fine-tuning. Accuracy is measured in two ways on the first eight slides: images held out **at random**, or
# **whole slides** held out, two at a time.
#
# **Predict:** which accuracy is higher? And which is closer to that on the four new slides?
# %% [fr]
# Nous laissons le modèle fourni tel quel, prenons ce que lit sa tête pour chaque cellule, et n’entraînons qu’une nouvelle tête :
# une *sonde linéaire*, la forme la plus rapide de fine-tuning. L’exactitude est mesurée de deux façons sur les huit premières
# lames : des images mises de côté **au hasard**, ou des **lames entières**, deux à la fois.
#
# **Prédisez :** quelle exactitude est la plus haute ? Et laquelle est la plus proche de celle des quatre lames nouvelles ?
# %%
loaded = vitexplain.load_model("bundled")
with torch.inference_mode():
    batches = [
        torch.stack([loaded.transform(image) for image in cells[n : n + 40]])
        for n in range(0, 240, 40)
    ]
    features = torch.cat(
        [
            loaded.model.forward_head(loaded.model.forward_features(b), pre_logits=True)
            for b in batches
        ]
    )
features = features.clone()
targets = torch.from_numpy(kinds)


def probe(train):
    """A head trained on these images."""
    torch.manual_seed(0)
    head = nn.Linear(features.shape[1], 2)
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(200):
        loss = nn.functional.cross_entropy(head(features[train]), targets[train])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return head


def right(head, places):
    with torch.inference_mode():
        return (head(features[places]).argmax(dim=1) == targets[places]).float().mean().item()


first = np.flatnonzero(slides < 8)
by_chance = np.array_split(rng.permutation(first), 4)
by_slide = [np.flatnonzero((slides == n) | (slides == n + 1)) for n in (0, 2, 4, 6)]
accuracies = {
    name: np.mean([right(probe(np.setdiff1d(first, held)), held) for held in parts])
    for name, parts in (("held out at random", by_chance), ("whole slides held out", by_slide))
}
final = probe(first)
accuracies["new slides"] = right(final, np.flatnonzero(slides >= 8))
figure, axis = plt.subplots(figsize=(6, 2))
axis.barh(list(accuracies), list(accuracies.values()))
axis.axvline(0.5, color="grey", linestyle=":")
axis.invert_yaxis()
axis.set(xlim=(0, 1), xlabel="accuracy")
plt.show()
print(", ".join(f"{name} {value:.2f}" for name, value in accuracies.items()))
assert accuracies["held out at random"] > accuracies["new slides"] + 0.2
# %% [en]
# Held out at random, nearly every image is right. Of each slide the training images show the stain, and the stain says the
# kind: the probe need not look at the nucleus. Whole slides held out tell the truth, and new slides confirm it.
#
# `vitexplain.training.train` does this with `--group REGEX`, and warns where file names look like slides or patients that a
# random split has torn apart.
#
# **Predict:** what do the maps light up, the nucleus or the background?
# %% [fr]
# Mises de côté au hasard, presque toutes les images sont justes. De chaque lame, les images d’entraînement montrent la
# coloration, et la coloration dit la sorte : la sonde n’a pas besoin de regarder le noyau. Les lames entières mises de côté
# disent la vérité, et les lames nouvelles la confirment.
#
# `vitexplain.training.train` le fait avec `--group REGEX`, et avertit quand des noms de fichiers semblent désigner des lames
# ou des patients qu’un partage au hasard a séparés.
#
# **Prédisez :** qu’est-ce que les cartes éclairent, le noyau ou le fond ?
# %%
model = loaded.model
model.head = final
probed = dataclasses.replace(loaded, model=model, categories=list(KINDS))
places = np.flatnonzero(slides >= 8)[[0, 1, 20, 21, 40, 61]]
found = vitexplain.explain([cells[n] for n in places], category="top", model=probed)
figure, axes = plt.subplots(1, len(places), figsize=(2 * len(places), 2.3))
for axis, n, each in zip(axes, places, found):
    axis.imshow(each.overlay())
    left, top, right_edge, bottom = made[n][1]
    axis.add_patch(
        plt.Rectangle((left, top), right_edge - left, bottom - top, fill=False, color="white")
    )
    axis.set_title(f"{each.category.name}, is {KINDS[kinds[n]]}", fontsize=9)
    axis.axis("off")
plt.show()
# %% [en]
# Look for yourself: where is the map bright, inside the white box or around it? Such maps on the real cells, with figures, are
# in [docs/medical.md](../../docs/medical.md). Three habits to take home:
#
# 1. Ask what your images have in common besides what you want to know: slide, patient, camera, hospital.
# 2. Keep such groups together when you split.
# 3. Look at maps, of mistakes first, and measure whether they fall on the object.
# %% [fr]
# Regardez vous-même : où la carte est-elle claire, dans le cadre blanc ou autour ? De telles cartes sur les vraies cellules, avec
# des chiffres, sont dans [docs/medical.md](../../docs/medical.md). Trois habitudes à emporter :
#
# 1. Demandez-vous ce que vos images ont en commun en dehors de ce que vous voulez savoir : lame, patient, appareil, hôpital.
# 2. Gardez ces groupes entiers quand vous partagez.
# 3. Regardez les cartes, celles des erreurs d’abord, et mesurez si elles tombent sur l’objet.
