# %% [en]
# # 8 · CNN, ViT, hybrid; and a slide that gives itself away
#
# What is the difference between the three, beyond their drawings? Then the most important
# experiment of these lessons: a network with excellent accuracy that has learned nothing about
# cells.
# %% [fr]
# # 8 · CNN, ViT, hybride ; et une lame qui se trahit
#
# Quelle est la différence entre les trois, au-delà de leurs schémas ? Puis l'expérience la plus
# importante de ces leçons : un réseau d'une excellente exactitude, qui n'a rien appris sur les
# cellules.
# %%
import cv2
import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from vit_grad_rollout import VITAttentionGradRollout
from vit_rollout import VITAttentionRollout
from timm.models.vision_transformer import VisionTransformer

torch.set_num_threads(1)  # for networks so small the fastest, and the same numbers everywhere
SIZE, PATCH = 40, 8


def convolutions():
    layers, channels = [], 3
    for width in (16, 32, 48):  # each halves the grid: 40 pixels -> 5 x 5
        layers += [nn.Conv2d(channels, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU()]
        channels = width
    return nn.Sequential(*layers)


def make(kind, seed=0):
    torch.manual_seed(seed)
    if kind == "CNN":
        head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 2))
        return nn.Sequential(convolutions(), *head)
    size = {"img_size": SIZE, "patch_size": PATCH, "embed_dim": 48, "depth": 2, "num_heads": 4}
    model = VisionTransformer(**size, mlp_ratio=2, num_classes=2)
    if kind == "hybrid":
        model.patch_embed.proj = convolutions()  # in place of the patch convolution
    return model


# %% [en]
# ## Inductive bias
#
# Before any training: which pixels can one place of the output see? We take the gradient of the
# middle of the 5 × 5 grid: after all convolutions of the CNN, after the *first* block of the other
# two.
#
# **Predict.** Which network sees the whole image at once? Which has the idea of a neighbourhood
# built in?
# %% [fr]
# ## Le biais inductif
#
# Avant tout entraînement : quels pixels un endroit de la sortie peut-il voir ? Nous prenons le
# gradient du milieu de la grille 5 × 5 : après toutes les convolutions du CNN, après le *premier*
# bloc des deux autres.
#
# **Prédire.** Quel réseau voit d'emblée toute l'image ? Lequel a l'idée de voisinage par
# construction ?
# %%
figure, axes = plt.subplots(1, 3, figsize=(10, 3.3), constrained_layout=True)
for axis, kind in zip(axes, ("CNN", "hybrid", "ViT"), strict=True):
    model = make(kind).eval()
    image = torch.rand(1, 3, SIZE, SIZE, requires_grad=True)
    if kind == "CNN":
        middle = model[0](image)[0, :, 2, 2]
    else:
        middle = model.blocks[0](model._pos_embed(model.patch_embed(image)))[0, 1 + 2 * 5 + 2]
    (middle**2).sum().backward()
    seen = image.grad[0].abs().sum(dim=0)
    print(f"{kind:6} sees {(seen > 0).float().mean():.0%} of the pixels")
    axis.imshow((seen / seen.max()).clamp(1e-5).log10(), cmap="viridis", vmin=-5, vmax=0)
    axis.set_title(f"{kind}: log10 of the gradient")
plt.show()

# %% [en]
# **See.** The CNN's place sees its neighbourhood, and its weights are the same everywhere: "near
# things belong together, wherever they are" is built in. The ViT sees everything from the first
# block on, and must *learn* what is near. A hybrid, such as the bundled model, has the CNN's
# prejudice first and the ViT's freedom after it.
# %% [fr]
# **Voir.** L'endroit du CNN voit son voisinage, et les poids sont les mêmes partout : « ce qui est
# proche va ensemble, où que ce soit » est inscrit dans sa construction. Le ViT voit tout dès le
# premier bloc, et doit *apprendre* ce qui est proche. Un hybride, comme le modèle fourni, a
# d'abord le préjugé du CNN, puis la liberté du ViT.


# %% [en]
# ## Hunger for data
#
# A task: drawn cells with a small or a large nucleus (4 or 5 pixels), anywhere in the image.
#
# **Predict.** Trained on 50, 200 and 600 images: which network is ahead where? Is it enough to be
# a hybrid?
# %% [fr]
# ## La faim de données
#
# Une tâche : des cellules dessinées, à petit ou à grand noyau (4 ou 5 pixels), n'importe où dans
# l'image.
#
# **Prédire.** Entraînés sur 50, 200 et 600 images : quel réseau mène, et où ? Suffit-il d'être
# hybride ?
# %%
def cell(rng, large, tint):
    """A cell on a stained background, (40, 40, 3), and its box."""
    image = np.empty((SIZE, SIZE, 3), np.float32)
    image[:] = tint
    x, y = rng.integers(10, SIZE - 10, 2).tolist()
    cv2.circle(image, (x, y), 8, (0.75, 0.6, 0.8), -1, cv2.LINE_AA)
    dx, dy = rng.integers(-2, 3, 2).tolist()
    cv2.circle(image, (x + dx, y + dy), 5 if large else 4, (0.35, 0.2, 0.5), -1, cv2.LINE_AA)
    image += rng.normal(0, 0.05, image.shape)
    return image.clip(0, 1), (x - 8, y - 8, x + 8, y + 8)


def draw(rng, slides, tints, share):
    """Cells of each slide; odd slides have large nuclei, as often as share says."""
    large = np.where(rng.random(len(slides)) < share, slides % 2, 1 - slides % 2)
    cells = [cell(rng, *of) for of in zip(large, tints[slides], strict=True)]
    images = torch.from_numpy(np.stack([image for image, _ in cells])).float().permute(0, 3, 1, 2)
    return images * 2 - 1, torch.from_numpy(large), np.array([box for _, box in cells])


def fit(model, images, labels, steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    model.train()
    for _ in range(steps):
        chosen = torch.randint(len(images), (64,), generator=generator)
        loss = F.cross_entropy(model(images[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.inference_mode()
def accuracy(model, images, labels):
    return (model(images).argmax(dim=1) == labels).float().mean().item()


GREY = np.tile([0.8, 0.75, 0.85], (8, 1))
rng = np.random.default_rng(0)
images, labels, _ = draw(rng, rng.integers(8, size=1100), GREY, share=0.5)
sizes = (50, 200, 600)
figure, axes = plt.subplots(1, 2, figsize=(11, 3.3), constrained_layout=True)
for kind in ("CNN", "hybrid", "ViT"):
    found = []
    for n in sizes:
        model = fit(make(kind), images[:n], labels[:n], steps=150)
        found.append(accuracy(model, images[600:], labels[600:]))
    print(f"{kind:6}", [f"{n} images: {value:.2f}" for n, value in zip(sizes, found, strict=True)])
    axes[0].plot([str(n) for n in sizes], found, marker="o", label=kind)
axes[0].set_xlabel("training images")
axes[0].set_title("accuracy, drawn cells")
axes[0].legend()
measured = {"CNN": 0.075, "ViT": 0.046, "hybrid": 0.037}  # docs/training.md
axes[1].bar(list(measured), list(measured.values()))
axes[1].axhline(0.005, color="grey", linestyle="dotted")
axes[1].set_title("top-1, 4,000 photographs of 200 categories")
plt.show()

# %% [en]
# **See.** With few images, the CNN leads; the ViT still lacks at 600 what the CNN knew at 200. On
# our drawn cells the hybrid has caught up with the CNN at 600; on photographs, in the repository's
# own measurement ([training](../../docs/training.md): about 5 to 6 million parameters each, from
# scratch), it does *not*. So "hybrids need less data" is a hope to be measured, not a rule. With
# pretrained weights, the order may be another again: that is what one does with few images.
# %% [fr]
# **Voir.** Avec peu d'images, le CNN mène ; à 600 images, le ViT n'a pas encore ce que le CNN
# savait à 200. Sur nos cellules dessinées, l'hybride a rejoint le CNN à 600 images ; sur des
# photographies, dans la mesure faite pour ce dépôt ([entraînement](../../docs/training.md) : 5 à 6
# millions de paramètres chacun, en partant de zéro), *non*. « Les hybrides ont besoin de moins de
# données » est donc un espoir à mesurer, pas une règle. Avec des poids préentraînés, l'ordre peut
# encore être différent : c'est ce qu'on fait quand on a peu d'images.

# %% [en]
# ## A medical case: two ways to split
#
# Blood cells come on slides. Each slide has its own stain, and cells of one kind come mostly from
# the same slides (one patient, one disease). Here are eight drawn slides; 95 % of a slide's cells
# are of one kind.
#
# **Predict.** We train a ViT twice: with a random quarter as the test set, then with two whole
# slides left out at a time. How far apart are the two accuracies?
# %% [fr]
# ## Un cas médical : deux façons de séparer
#
# Les cellules sanguines viennent de lames. Chaque lame a sa propre coloration, et les cellules
# d'un type viennent surtout des mêmes lames (un patient, une maladie). Voici huit lames
# dessinées ; 95 % des cellules d'une lame sont du même type.
#
# **Prédire.** Nous entraînons un ViT de deux façons : avec un quart tiré au hasard comme test,
# puis en laissant de côté deux lames entières à la fois. De combien les deux exactitudes
# diffèrent-elles ?
# %%
rng = np.random.default_rng(4)
stains = (GREY + np.random.default_rng(4).uniform(-0.2, 0.2, (8, 3))).clip(0, 1)
slides = rng.integers(8, size=800)
images, labels, boxes = draw(rng, slides, stains, share=0.95)

figure, axes = plt.subplots(1, 8, figsize=(13, 2), constrained_layout=True)
for slide, axis in enumerate(axes):
    axis.imshow(images[slides == slide][0].permute(1, 2, 0) * 0.5 + 0.5)
    axis.set_title(f"slide {slide}: {labels[slides == slide].float().mean():.0%} large", fontsize=9)
    axis.axis("off")
plt.show()


def trained_and_tested(images, labels, test, seed=0):
    model = fit(make("ViT", seed), images[~test], labels[~test], steps=120, seed=seed)
    return model, accuracy(model, images[test], labels[test])


quarter = np.arange(800) % 4 == 0
at_random, split_at_random = trained_and_tested(images, labels, quarter)
by_slide = [trained_and_tested(images, labels, slides // 2 == pair)[1] for pair in range(4)]
print(f"random split {split_at_random:.2f}, other slides {np.mean(by_slide):.2f}")
print("each pair of slides:", [f"{value:.2f}" for value in by_slide])
assert split_at_random > np.mean(by_slide) + 0.2

figure, axis = plt.subplots(figsize=(6, 3), constrained_layout=True)
axis.bar(["random", *(f"{2 * n}, {2 * n + 1}" for n in range(4))], [split_at_random, *by_slide])
axis.axhline(0.5, color="grey", linestyle="dotted")
axis.set_title("accuracy: random split; slides left out")
plt.show()

# %% [en]
# **See.** More than nine in ten at random; on other slides hardly better than a coin on average,
# or worse, and very different from pair to pair. The background alone tells the slide, the slide
# tells the kind, and a random split puts the same slides into both halves. In the real case,
# [white blood cells](../../docs/medical.md), a random split said 0.81,
# other images 0.37, and those of other slides alone 0.12.
# %% [fr]
# **Voir.** Plus de neuf sur dix au hasard ; sur d'autres lames, en moyenne guère mieux qu'à pile
# ou face, voire moins bien, et très variable d'une paire à l'autre. Le fond à lui seul trahit la
# lame, la lame trahit le type, et une séparation au hasard met les mêmes lames dans les deux
# moitiés. Dans le cas réel, celui des [globules blancs](../../docs/medical.md), une séparation au
# hasard disait 0,81, d'autres images 0,37, et celles
# d'autres lames seules 0,12.

# %% [en]
# ## Do the maps reveal it?
#
# For each test image of the random split: does the brightest patch lie in the cell's box? The
# baseline is a spot in the middle of the image, which knows nothing of what the image shows.
#
# **Predict.** Is the share above or below that of the spot?
# %% [fr]
# ## Les cartes le révèlent-elles ?
#
# Pour chaque image de test de la séparation au hasard : le patch le plus brillant est-il dans la
# boîte de la cellule ? La référence est une tache au milieu de l'image, qui ne sait rien de ce que
# l'image montre.
#
# **Prédire.** Cette part est-elle au-dessus ou au-dessous de celle de la tache ?
# %%
tested, boxes_tested = images[quarter], boxes[quarter]
with torch.inference_mode():
    answers = at_random(tested).argmax(dim=1)
gradient_rollout = VITAttentionGradRollout(at_random, discard_ratio=0)
maps = {
    "rollout": VITAttentionRollout(at_random, discard_ratio=0).batch(tested),
    "gradient rollout": gradient_rollout.batch(tested, answers.tolist()),
}


def in_box(x, y):
    """Share of the points (x, y) that lie in the boxes of the test images."""
    x0, y0, x1, y1 = boxes_tested.T
    return ((x0 <= x) & (x <= x1) & (y0 <= y) & (y <= y1)).mean()


shares = {"spot in the middle": in_box(SIZE / 2, SIZE / 2)}
for name, of_images in maps.items():
    rows, columns = np.divmod(of_images.reshape(len(of_images), -1).argmax(axis=1), SIZE // PATCH)
    shares[name] = in_box((columns + 0.5) * PATCH, (rows + 0.5) * PATCH)
print({name: round(float(share), 2) for name, share in shares.items()})

figure, axes = plt.subplots(2, 8, figsize=(13, 3.6), constrained_layout=True)
for row, (name, of_images) in zip(axes, maps.items(), strict=True):
    row[0].set_title(name)
    for axis, image, of_patches in zip(row, tested, of_images, strict=False):
        axis.imshow(image.permute(1, 2, 0) * 0.5 + 0.5)
        axis.imshow(of_patches, cmap="turbo", alpha=0.45, extent=(0, SIZE, SIZE, 0))
        axis.axis("off")
plt.show()

# %% [en]
# **See.** In our run, below for both: 0.20 for rollout, 0.61 for gradient rollout, and 0.67 for
# the spot. (In the real case: 19 % and 24 % of the images, where the spot has 24 %.) A map that
# finds the object no more often than a spot that knows nothing is an alarm. But look at the
# second row: in some images, the brightest patch *is* the cell. Shown only those, would you have
# been suspicious?
# %% [fr]
# **Voir.** Chez nous, au-dessous pour les deux : 0,20 pour le rollout, 0,61 pour le gradient
# rollout, et 0,67 pour la tache. (Dans le cas réel : 19 % et 24 % des images, où la tache a 24 %.)
# Une carte qui ne
# trouve pas l'objet plus souvent qu'une tache qui ne sait rien est une alarme. Mais
# regardez la deuxième rangée : dans certaines images, le patch le plus brillant *est* la cellule.
# Si l'on ne vous avait montré que celles-là, auriez-vous eu des soupçons ?

# %% [en]
# ## Don't believe the place: change the cause
#
# A map shows where, and never proves why. An experiment does: we keep the cell and repaint the
# background with the stain of the neighbouring slide; then we keep the background and erase the
# cell.
#
# **Predict.** Which of the two changes the network's answers, and in how many images?
# %% [fr]
# ## Ne croyez pas l'endroit : changez la cause
#
# Une carte montre où, et ne prouve jamais pourquoi. Une expérience, si : nous gardons la cellule
# et repeignons le fond avec la coloration de la lame voisine ; puis nous gardons le fond et
# effaçons la cellule.
#
# **Prédire.** Laquelle des deux change les réponses du réseau, et dans combien d'images ?
# %%
paints = torch.from_numpy(stains).float()[:, :, None, None] * 2 - 1  # (8, 3, 1, 1)
repainted, erased = tested.clone(), tested.clone()
for number, (slide, (x0, y0, x1, y1)) in enumerate(zip(slides[quarter], boxes_tested, strict=True)):
    inside = (slice(None), slice(y0, y1 + 1), slice(x0, x1 + 1))
    repainted[number] += paints[slide ^ 1] - paints[slide]  # 0 <-> 1, 2 <-> 3, ...
    repainted[number][inside] = tested[number][inside]
    erased[number][inside] = paints[slide]
variants = {"image": tested, "repainted": repainted, "erased": erased}
with torch.inference_mode():
    changed = {
        name: (at_random(variant).argmax(dim=1) != answers).float().mean().item()
        for name, variant in variants.items()
    }
print({name: round(share, 2) for name, share in changed.items()})
assert changed["repainted"] > changed["erased"] + 0.5

figure, axes = plt.subplots(1, 4, figsize=(12, 3), constrained_layout=True)
for axis, (name, variant) in zip(axes, variants.items(), strict=False):
    axis.imshow((variant[0].permute(1, 2, 0) * 0.5 + 0.5).clamp(0, 1))
    axis.set_title(name)
    axis.axis("off")
axes[3].bar(list(changed), list(changed.values()))
axes[3].set_title("share of answers that change")
plt.show()

# %% [en]
# **See.** With another background, *every* answer changes; without a cell, none does. The network
# reads the stain and nothing else, and is right in 93 % of the images.
#
# These stains were chosen because the effect is clear. Try others (another number in *both*
# `default_rng(4)`): the effect is mixed then, or absent, and a map may lie on the cell while the
# network reads the stain. A map on the object acquits nobody.
#
# **Remember.** Split by slide, patient, camera, day: by whatever must be new when it counts.
# Compare maps with a spot in the middle. And when a map makes you suspect something, change it in
# the image, and count.
# %% [fr]
# **Voir.** Avec un autre fond, *toutes* les réponses changent ; sans cellule, aucune. Le réseau
# lit la coloration et rien d'autre, et a raison dans 93 % des images.
#
# Ces colorations ont été choisies parce que l'effet y est net. Essayez-en d'autres (un autre nombre
# dans *les deux* `default_rng(4)`) : l'effet est alors mixte, ou absent, et une carte peut être sur
# la cellule alors que le réseau lit la coloration. Une carte sur l'objet n'innocente personne.
#
# **À retenir.** Séparez par lame, par patient, par appareil, par jour : par tout ce qui devra être
# nouveau le jour où cela compte. Comparez les cartes à une tache au milieu. Et quand une carte
# vous fait soupçonner quelque chose, changez-le dans l'image, et comptez.
