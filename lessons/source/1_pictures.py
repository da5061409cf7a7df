# %% [en]
# # 1 · Preparing images
#
# A model never sees a photograph. It sees a grid of numbers of a fixed size, made in the same way
# as those it was trained on. This lesson makes these numbers by hand, and then gets them wrong.
#
# Each step has three parts: **Predict** (answer before you run the cell, aloud or on paper), run,
# **See**.
# %% [fr]
# # 1 · Préparer les images
#
# Un modèle ne voit jamais une photographie. Il voit une grille de nombres, d'une taille fixe,
# obtenue comme celles de son entraînement. Dans cette leçon, nous fabriquons ces nombres à la
# main, puis nous nous trompons exprès.
#
# Chaque étape a trois temps : **Prédire** (répondez avant d'exécuter la cellule, à voix haute ou
# sur papier), exécuter, **Voir**.
# %%
import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image

from vitexplain import load_model

loaded = load_model("bundled")
model = loaded.model
photograph = Image.open("examples/viaduct.jpg").convert("RGB")
print("width x height:", photograph.size, "model input:", loaded.transform.size)


def top3(pixels):
    """The three most likely categories of one prepared image (3, 224, 224)."""
    with torch.inference_mode():
        probabilities = model(pixels[None]).softmax(dim=1)[0]
    values, indices = probabilities.topk(3)
    return [
        (loaded.categories[index].split(",")[0], value.item())
        for index, value in zip(indices.tolist(), values, strict=True)
    ]


# %% [en]
# ## Three ways into a square
#
# The model wants 224 × 224 pixels; the photograph is wider than high.
#
# **Predict.** Which way keeps all of the bridge? Which keeps its proportions? Can one do both?
# %% [fr]
# ## Trois façons d'entrer dans un carré
#
# Le modèle attend 224 × 224 pixels ; la photographie est plus large que haute.
#
# **Prédire.** Quelle façon garde le pont entier ? Laquelle garde ses proportions ? Peut-on avoir
# les deux ?
# %%
def squash(image):
    return image.resize((224, 224), Image.Resampling.BICUBIC)


def center_crop(image):
    scale = 224 / min(image.size)
    image = image.resize([round(side * scale) for side in image.size], Image.Resampling.BICUBIC)
    left, top = (image.width - 224) // 2, (image.height - 224) // 2
    return image.crop((left, top, left + 224, top + 224))


def pad(image):
    scale = 224 / max(image.size)
    image = image.resize([round(side * scale) for side in image.size], Image.Resampling.BICUBIC)
    square = Image.new("RGB", (224, 224), (128, 128, 128))
    square.paste(image, ((224 - image.width) // 2, (224 - image.height) // 2))
    return square


ways = {"squash": squash, "center crop": center_crop, "pad": pad}
figure, axes = plt.subplots(1, 4, figsize=(14, 3.5), constrained_layout=True)
axes[0].imshow(photograph)
axes[0].set_title("original")
for axis, (name, way) in zip(axes[1:], ways.items(), strict=True):
    axis.imshow(way(photograph))
    axis.set_title(name)
plt.show()

# %% [en]
# **See.** Squashing keeps everything and bends the proportions; the centre crop keeps proportions
# and cuts the sides off; padding keeps both, and spends pixels on grey. A map can only speak of
# what was kept: this is why the tool squashes by default, and has `--crop` for the other two.
# %% [fr]
# **Voir.** Écraser garde tout mais déforme ; le recadrage central garde les proportions mais coupe
# les côtés ; le remplissage garde les deux, mais dépense des pixels en gris. Une carte ne peut
# parler que de ce qui a été gardé : c'est pourquoi l'outil écrase par défaut, et propose `--crop`
# pour les deux autres.


# %% [en]
# ## Mean and deviation
#
# A pixel $x$ from 0 to 1 becomes $(x - \text{mean}) / \text{deviation}$, channel by channel. The
# values belong to the *model*: the bundled one was trained with 0.5 and 0.5.
#
# **Predict.** Into which range does this bring the pixels? Which number stands for black?
# %% [fr]
# ## Moyenne et écart-type
#
# Un pixel $x$ entre 0 et 1 devient $(x - \text{moyenne}) / \text{écart-type}$, canal par canal.
# Ces valeurs appartiennent au *modèle* : le modèle fourni a été entraîné avec 0,5 et 0,5.
#
# **Prédire.** Dans quel intervalle tombent alors les pixels ? Quel nombre représente le noir ?
# %%
def prepare(image, mean=(0.5, 0.5, 0.5), deviation=(0.5, 0.5, 0.5)):
    pixels = torch.from_numpy(np.array(image)) / 255  # (224, 224, 3), from 0 to 1
    pixels = (pixels - torch.tensor(mean)) / torch.tensor(deviation)
    return pixels.permute(2, 0, 1).float()  # (3, 224, 224): channels first


pixels = prepare(squash(photograph))
print("mean", loaded.transform.mean, "deviation", loaded.transform.std)
print("shape", tuple(pixels.shape), "from", pixels.min().item(), "to", pixels.max().item())
print("black:", prepare(Image.new("RGB", (224, 224))).unique().tolist())
assert torch.allclose(pixels, loaded.transform(photograph), atol=1e-5)  # the tool's own transform

figure, axes = plt.subplots(1, 2, figsize=(11, 3), constrained_layout=True)
for channel, color in enumerate(["red", "green", "blue"]):
    before = (pixels[channel] * 0.5 + 0.5).flatten()
    axes[0].hist(before, bins=50, color=color, alpha=0.4)
    axes[1].hist(pixels[channel].flatten(), bins=50, color=color, alpha=0.4)
axes[0].set_title("x")
axes[1].set_title("(x - 0.5) / 0.5")
plt.show()

# %% [en]
# **See.** From -1 to 1, and black is -1. The shape of the histogram stays; only its axis changes.
# The `assert` holds: our three lines do the same as the tool's transform. (Two things to copy
# exactly: divide by 255 once, and put the channels first.)
# %% [fr]
# **Voir.** De -1 à 1, et le noir vaut -1. La forme de l'histogramme reste ; seul l'axe change.
# L'`assert` passe : nos trois lignes font la même chose que la transformation de l'outil. (Deux
# points à recopier exactement : diviser par 255 une seule fois, et mettre les canaux en premier.)


# %% [en]
# ## What goes wrong
#
# No mistake below raises an error: each gives a tensor of the right shape, and a list of
# categories.
#
# **Predict.** Rank these mistakes by the damage they do: another model's mean and deviation
# ("ImageNet's": 0.485…, 0.229…), forgetting to normalise (0 to 1), forgetting to divide by 255,
# swapping red and blue (OpenCV reads blue first).
# %% [fr]
# ## Ce qui peut mal tourner
#
# Aucune des erreurs ci-dessous ne lève d'exception : chacune donne un tenseur de la bonne forme,
# et une liste de catégories.
#
# **Prédire.** Classez ces erreurs selon leurs dégâts : la moyenne et l'écart-type d'un autre
# modèle (« ImageNet's » : 0,485… et 0,229…), l'oubli de la normalisation (de 0 à 1), l'oubli de la
# division par 255, l'échange du rouge et du bleu (OpenCV lit le bleu en premier).
# %%
def variants_of(image):
    square = squash(image)
    right = prepare(square)
    return {
        "right": right,
        "ImageNet's": prepare(square, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        "not normalised": prepare(square, (0, 0, 0), (1, 1, 1)),
        "not / 255": 255 * (right * 0.5 + 0.5),
        "red <-> blue": right.flip(0),
    }


names = ["panda", "crocodile", "shepherd", "viaduct"]
figure, axes = plt.subplots(len(names), 5, figsize=(13, 11), constrained_layout=True)
for row, name in zip(axes, names, strict=True):
    image = Image.open(f"examples/{name}.jpg").convert("RGB")
    for axis, (way, pixels) in zip(row, variants_of(image).items(), strict=True):
        category, probability = top3(pixels)[0]
        axis.imshow((pixels * 0.5 + 0.5).clamp(0, 1).permute(1, 2, 0))
        axis.set_title(f"{way}\n{category} {probability:.2f}", fontsize=10)
        axis.axis("off")
        print(f"{name:10} {way:15}", *(f"{c} {p:.2f}," for c, p in top3(pixels)))
plt.show()

# %% [en]
# **See.** Only the forgotten division destroys the answer, and so it is found at once. The others
# are worse because they are mild: the panda falls from 0.91 to 0.66 without normalisation, and
# "ice bear" appears; with red and blue swapped, the crocodile falls from 0.47 to 0.09. The first
# category is still right, so that nobody notices. The viaduct even rises: one image proves
# nothing, measure on many.
#
# **Remember.** Take size, mean and deviation from the model's own description (`loaded.transform`,
# in timm `resolve_model_data_config`), never from a tutorial.
# %% [fr]
# **Voir.** Seule la division oubliée détruit la réponse : on la trouve donc aussitôt. Les autres
# erreurs sont pires parce qu'elles sont bénignes en apparence : sans normalisation, le panda passe
# de 0,91 à 0,66, et « ice bear » (ours blanc) apparaît ; rouge et bleu échangés, le crocodile
# passe de 0,47 à 0,09. La première catégorie reste juste, et personne ne remarque rien. Le viaduc,
# lui, monte même : une seule image ne prouve rien, mesurez sur beaucoup d'images.
#
# **À retenir.** Prenez la taille, la moyenne et l'écart-type dans la description du modèle
# (`loaded.transform`, dans timm `resolve_model_data_config`), jamais dans un tutoriel.
