# %% [en]
# # 6 · Training and evaluation
#
# First a training loop written out, for a tiny ViT on drawings made on the spot. Then fine-tuning
# of the bundled model by the repository's own command, which does the same and more.
# %% [fr]
# # 6 · Entraînement et évaluation
#
# D'abord une boucle d'entraînement écrite en entier, pour un tout petit ViT, sur des dessins faits
# sur place. Puis un ré-entraînement fin (*fine-tuning*) du modèle fourni avec la commande du
# dépôt, qui fait la même chose, et davantage.
# %%
import csv
import tempfile
from pathlib import Path

import cv2
import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from vitexplain import explain, load_model
from vitexplain.training.train import main as train_command
from timm.models.vision_transformer import VisionTransformer

torch.set_num_threads(1)  # for a network so small the fastest, and the same numbers everywhere
SHAPES = ("disc", "square", "triangle")


def drawing(rng, shape):
    """A shape of any colour and place on any background, (32, 32, 3)."""
    image = np.empty((32, 32, 3), np.float32)
    image[:] = rng.uniform(0.5, 1, 3)
    color = rng.uniform(0, 0.4, 3).tolist()
    (x, y), r = rng.integers(10, 22, 2).tolist(), int(rng.integers(6, 9))
    if shape == "disc":
        cv2.circle(image, (x, y), r, color, -1, cv2.LINE_AA)
    elif shape == "square":
        cv2.rectangle(image, (x - r, y - r), (x + r, y + r), color, -1)
    else:
        corners = np.array([(x, y - r), (x - r, y + r), (x + r, y + r)], np.int32)
        cv2.fillPoly(image, [corners], color, cv2.LINE_AA)
    return image + rng.normal(0, 0.05, image.shape).astype(np.float32)


rng = np.random.default_rng(0)
labels = torch.arange(1200) % 3
images = np.stack([drawing(rng, SHAPES[label]) for label in labels.tolist()])
images = torch.from_numpy(images).permute(0, 3, 1, 2) * 2 - 1  # (1200, 3, 32, 32)
train, validation = slice(0, 900), slice(900, 1200)  # never the same image in both

figure, axes = plt.subplots(1, 9, figsize=(12, 1.6), constrained_layout=True)
for axis, image, label in zip(axes, images, labels.tolist(), strict=False):
    axis.imshow((image.permute(1, 2, 0) * 0.5 + 0.5).clamp(0, 1))
    axis.set_title(SHAPES[label])
    axis.axis("off")
plt.show()

# %% [en]
# ## Before the first step
#
# The loss is the cross-entropy: minus the logarithm of the probability given to the right
# category.
#
# **Predict.** Three shapes, a network that knows nothing: how large is its loss, and how often is
# it right?
# %% [fr]
# ## Avant le premier pas
#
# La fonction de perte (loss) est l'entropie croisée : moins le logarithme de la probabilité donnée
# à la bonne catégorie.
#
# **Prédire.** Trois formes, un réseau qui ne sait rien : que vaut sa perte, et combien de fois
# a-t-il raison ?
# %%
device = "cuda" if torch.cuda.is_available() else "cpu"


def tiny_vit():
    torch.manual_seed(0)
    size = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 4}
    return VisionTransformer(**size, mlp_ratio=2, num_classes=3).to(device)


@torch.inference_mode()  # no gradients: faster, and nothing can be learned by accident
def evaluate(model, part):
    model.eval()  # dropout off, batch norms frozen
    logits = model(images[part].to(device)).cpu()
    loss = F.cross_entropy(logits, labels[part]).item()
    return loss, (logits.argmax(dim=1) == labels[part]).float().mean().item()


loss, accuracy = evaluate(tiny_vit(), validation)
print(f"loss {loss:.3f}, log(3) = {np.log(3):.3f}, accuracy {accuracy:.2f}")

# %% [en]
# **See.** About log 3 ≈ 1.1, and about one in three. A first loss far from log(number of
# categories) is the cheapest alarm there is: something is wrong with labels, head or inputs.
# %% [fr]
# **Voir.** Environ log 3 ≈ 1,1, et environ une fois sur trois. Une première perte loin de
# log(nombre de catégories) est l'alarme la moins chère qui soit : étiquettes, tête ou entrées,
# quelque chose cloche.


# %% [en]
# ## The loop
#
# Five lines: loss, `zero_grad`, `backward`, optimiser, scheduler. AdamW gives each weight its own
# step width; the scheduler lowers the common factor along a cosine. On a GPU, nothing changes but
# `.to(device)` for the model *and* for each batch.
#
# **Predict.** After 25 epochs: is the accuracy higher on training or on validation images, and by
# how much?
# %% [fr]
# ## La boucle
#
# Cinq lignes : perte, `zero_grad`, `backward`, optimiseur, planificateur (scheduler). AdamW donne
# à chaque poids sa propre longueur de pas ; le planificateur abaisse le facteur commun selon un
# cosinus. Sur un GPU, rien ne change sauf `.to(device)`, pour le modèle *et* pour chaque lot.
#
# **Prédire.** Après 25 époques : l'exactitude est-elle meilleure sur les images d'entraînement ou
# sur celles de validation, et de combien ?
# %%
def fit(model, learning_rate, epochs, batch=60):
    """Train, and return [(training, validation)] of (loss, accuracy) after each epoch."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.05)
    steps = epochs * 900 // batch
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    history = []
    for _ in range(epochs):
        model.train()
        for chosen in torch.randperm(900).split(batch):  # another order in each epoch
            loss = F.cross_entropy(model(images[chosen].to(device)), labels[chosen].to(device))
            optimizer.zero_grad()  # gradients would add up otherwise
            loss.backward()
            optimizer.step()
            scheduler.step()
        history.append((evaluate(model, train), evaluate(model, validation)))
    return np.array(history)  # (epochs, 2, 2)


history = fit(tiny_vit(), 2e-3, epochs=25)
figure, axes = plt.subplots(1, 2, figsize=(10, 3), constrained_layout=True)
for number, name in enumerate(("loss", "accuracy")):
    axes[number].plot(history[:, 0, number], label="training")
    axes[number].plot(history[:, 1, number], label="validation")
    axes[number].set_title(name)
    axes[number].set_xlabel("epoch")
    axes[number].legend()
plt.show()
print("accuracy: training {:.2f}, validation {:.2f}".format(*history[-1, :, 1]))

# %% [en]
# ## The learning rate
#
# **Predict.** The same for 8 epochs, with the learning rate divided by 100, as it was, and
# multiplied by 50. Which of the three curves stay near their start?
# %% [fr]
# ## Le taux d'apprentissage
#
# **Prédire.** La même chose sur 8 époques, avec le taux d'apprentissage divisé par 100, inchangé,
# puis multiplié par 50. Lesquelles des trois courbes restent près de leur départ ?
# %%
figure, axis = plt.subplots(figsize=(6, 3), constrained_layout=True)
for learning_rate in (2e-5, 2e-3, 1e-1):
    history = fit(tiny_vit(), learning_rate, epochs=8)
    axis.plot(history[:, 0, 0], label=f"{learning_rate:g}")
    print(f"{learning_rate:g}: training loss {history[-1, 0, 0]:.2f}")
axis.axhline(np.log(3), color="grey", linestyle="dotted")
axis.set_ylim(0, 2)
axis.set_title("training loss")
axis.set_xlabel("epoch")
axis.legend(title="learning rate")
plt.show()

# %% [en]
# **See.** First the loop above: training is ahead of validation (1.00 and 0.96 in our run); the
# gap is what was learned by heart. Then the learning rate: *two* curves stay near log 3. One has
# taken steps too small to get anywhere, the other jumps about and has unlearned everything. A flat
# curve alone doesn't tell which: try ten times less and ten times more.
# %% [fr]
# **Voir.** D'abord la boucle ci-dessus : l'entraînement devance la validation (1,00 et 0,96 chez
# nous) ; l'écart, c'est ce qui a été appris par cœur. Puis le taux d'apprentissage : *deux*
# courbes restent près de log 3. L'une fait des pas trop petits pour arriver quelque part, l'autre
# saute en tous sens et a tout désappris. Une courbe plate ne dit pas laquelle : essayez dix fois
# moins et dix fois plus.

# %% [en]
# ## Fine-tuning, and the names of the new head
#
# From scratch, 900 drawings were enough for three plain shapes. For photographs one starts from
# trained weights: `vitexplain.training.train` puts a fresh head on the bundled model. We give it
# 12 crops each of three photographs, and freeze the CNN and three of the four blocks.
#
# **Predict.** The old head knew 1000 names. After training: how many outputs are there, and which
# name has output 0, if the folders are called `panda`, `cat` and `koala`?
# %% [fr]
# ## Le fine-tuning, et les noms de la nouvelle tête
#
# En partant de zéro, 900 dessins ont suffi pour trois formes simples. Pour des photographies, on
# part de poids entraînés : `vitexplain.training.train` place une tête neuve sur le modèle fourni.
# Nous lui donnons 12 recadrages de chacune de trois photographies, et gelons le CNN et trois des
# quatre blocs.
#
# **Prédire.** L'ancienne tête connaissait 1000 noms. Après l'entraînement : combien y a-t-il de
# sorties, et quel nom porte la sortie 0, si les dossiers s'appellent `panda`, `cat` et `koala` ?
# %%
temporary = tempfile.TemporaryDirectory()  # gone when the notebook is closed
folder = Path(temporary.name)
for name in ("panda", "cat", "koala"):
    (folder / "data" / name).mkdir(parents=True)
    photograph = Image.open(f"examples/{name}.jpg").convert("RGB")
    for number in range(12):
        side = int(min(photograph.size) * rng.uniform(0.6, 0.9))
        x, y = (int(rng.integers(0, length - side)) for length in photograph.size)
        crop = photograph.crop((x, y, x + side, y + side)).resize((224, 224))
        crop.save(folder / "data" / name / f"{number}.jpg")

command = f"--data {folder / 'data'} --output {folder / 'tuned'} --freeze 3 --epochs 3"
command += " --batch_size 10 --lr 1e-3 --warmup_epochs 0 --ema 0.8"
assert train_command(command.split()) == 0

tuned = load_model(checkpoint=str(folder / "tuned"))
print(tuned.model.head, tuned.categories)
assert tuned.categories == ["cat", "koala", "panda"]
found = explain("examples/panda.jpg", "panda", model=tuned)
with (folder / "tuned" / "log.csv").open() as file:
    rows = list(csv.DictReader(file))

figure, axes = plt.subplots(1, 3, figsize=(13, 3), constrained_layout=True)
for column in ("train_loss", "validation_loss", "validation_top1"):
    axes[0].plot([1, 2, 3], [float(row[column]) for row in rows], label=column)
axes[0].legend()
axes[0].set_xticks([1, 2, 3])
axes[0].set_xlabel("epoch")
axes[1].bar([each.name for each in found.top], [each.probability for each in found.top])
axes[1].set_title("probability")
axes[2].imshow(found.overlay())
axes[2].set_title("evidence for panda")
axes[2].axis("off")
plt.show()

# %% [en]
# **See.** Three outputs, in **alphabetical** order: output 0 is `cat`. A head is only a matrix;
# its names are kept apart from it, here in the `config.json` beside the weights. Use a wrong list
# (the order in which *you* made the folders, or ImageNet's first three: tench, goldfish, shark)
# and every number is right and every name wrong. `--checkpoint FOLDER` reads the right list by
# itself.
#
# One warning: the crops in training and validation come from the *same* photographs, so that the
# validation accuracy of this toy says nothing about other pandas. Lesson 8 shows where that ends.
#
# **Remember.** Check the first loss, keep validation apart, change the learning rate first, and
# never part a head from its names.
# %% [fr]
# **Voir.** Trois sorties, par ordre **alphabétique** : la sortie 0 est `cat`. Une tête n'est
# qu'une matrice ; ses noms sont rangés à part, ici dans le `config.json` à côté des poids. Prenez
# une mauvaise liste (l'ordre dans lequel *vous* avez créé les dossiers, ou les trois premières
# d'ImageNet : tanche, poisson rouge, requin), et tous les nombres sont justes et tous les noms
# faux. `--checkpoint FOLDER` lit tout seul la bonne liste.
#
# Un avertissement : les recadrages d'entraînement et de validation viennent des *mêmes*
# photographies ; l'exactitude de validation de ce jouet ne dit donc rien d'autres pandas. La leçon
# 8 montre où cela mène.
#
# **À retenir.** Vérifiez la première perte, gardez la validation à part, changez d'abord le taux
# d'apprentissage, et ne séparez jamais une tête de ses noms.
