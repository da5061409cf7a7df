# %% [en]
# # 1. Preparing images
#
# A Vision Transformer takes a tensor of fixed size with numbers of a certain scale. Whatever happens
# between your file and that tensor decides what the model can see. Most wrong results begin here.
#
# In this lesson: resizing and cropping, mean and deviation, and what goes wrong without them.
# %% [fr]
# # 1. Préparer les images
#
# Un Vision Transformer prend un tenseur de taille fixe, dont les nombres ont une certaine échelle. Ce
# qui se passe entre votre fichier et ce tenseur décide de ce que le modèle peut voir. La plupart des
# résultats faux commencent ici.
#
# Dans cette leçon : redimensionner et recadrer, moyenne et écart-type, et ce qui arrive sans eux.
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

from vitexplain import load_model

plt.rcParams["figure.constrained_layout.use"] = True
loaded = load_model("bundled")  # a small model that comes with this project: no download
model = loaded.model
image = Image.open("examples/both.png").convert("RGB")
print(image.size)


# %% [en]
# ## One image, three ways into a square
#
# The model wants 224 × 224 pixels; the image is twice as wide as high. **Predict:** which of these three
# loses something of the animals, which one changes their shape, and which one spends patches on nothing?
# %% [fr]
# ## Une image, trois façons d’en faire un carré
#
# Le modèle veut 224 × 224 pixels ; l’image est deux fois plus large que haute. **Prédisez :** laquelle
# de ces trois façons perd une partie des animaux, laquelle change leur forme, et laquelle dépense des
# patches pour rien ?
# %%
def squash(image, side=224):
    return image.resize((side, side), Image.Resampling.BICUBIC)


def crop(image, side=224):
    edge = min(image.size)
    left, top = (image.width - edge) // 2, (image.height - edge) // 2
    return squash(image.crop((left, top, left + edge, top + edge)), side)


def pad(image, side=224):
    edge = max(image.size)
    square = Image.new("RGB", (edge, edge))
    square.paste(image, ((edge - image.width) // 2, (edge - image.height) // 2))
    return squash(square, side)


figure, axes = plt.subplots(1, 3, figsize=(9, 3.4))
for axis, way in zip(axes, (squash, crop, pad)):
    axis.imshow(way(image))
    axis.set_title(way.__name__)
    axis.axis("off")
plt.show()
# %% [en]
# *Crop* cuts half of each animal away, *squash* makes them narrow, *pad* keeps both and gives half of its
# patches to black bars. No way is right for every question; the tool squashes by default, so that no part
# of your image is out of sight (`--crop` has the others).
#
# ## From pixels to numbers
#
# Pixels are integers from 0 to 255. The model was trained on (x / 255 − mean) / deviation, channel by
# channel.
# %% [fr]
# *Crop* coupe la moitié de chaque animal, *squash* les rend étroits, *pad* les garde entiers et donne la
# moitié de ses patches à des bandes noires. Aucune façon n’est la bonne pour toute question ; l’outil
# comprime par défaut, pour qu’aucune partie de votre image ne reste hors de vue (`--crop` offre les autres).
#
# ## Des pixels aux nombres
#
# Les pixels sont des entiers de 0 à 255. Le modèle a été entraîné sur (x / 255 − moyenne) / écart-type,
# canal par canal.
# %%
mean, deviation = torch.tensor(loaded.transform.mean), torch.tensor(loaded.transform.std)
print("mean", mean, "deviation", deviation)


def to_tensor(image):
    pixels = torch.from_numpy(np.array(image)).float()  # (224, 224, 3): height, width, channel
    normal = (pixels / 255 - mean) / deviation
    return normal.permute(2, 0, 1)[None]  # (1, 3, 224, 224): a batch of one


tensor = to_tensor(squash(image))
assert torch.allclose(tensor, loaded.transform(image)[None], atol=1e-5)  # the tool does the same
print(tuple(tensor.shape), f"from {tensor.min():.2f} to {tensor.max():.2f}")
# %% [en]
# ## What goes wrong
#
# Nothing below raises an error. **Predict:** which of these mistakes changes the answer most?
#
# - *0 to 1*: mean and deviation forgotten
# - *0 to 255*: the division forgotten, too
# - *BGR*: red and blue exchanged, as OpenCV reads them
# - *grey*: the colours thrown away
# %% [fr]
# ## Ce qui va de travers
#
# Rien de ce qui suit ne lève d’erreur. **Prédisez :** laquelle de ces fautes change le plus la réponse ?
#
# - *0 to 1* : moyenne et écart-type oubliés
# - *0 to 255* : la division oubliée aussi
# - *BGR* : rouge et bleu échangés, comme les lit OpenCV
# - *grey* : les couleurs jetées
# %%
panda = Image.open("examples/red_panda.jpg").convert("RGB")
right = to_tensor(squash(panda))
unscaled = right * deviation[:, None, None] + mean[:, None, None]  # back to 0 to 1
inputs = {
    "right": right,
    "0 to 1": unscaled,
    "0 to 255": 255 * unscaled,
    "BGR": right.flip(1),
    "grey": to_tensor(squash(panda.convert("L").convert("RGB"))),
}
figure, axes = plt.subplots(1, len(inputs), figsize=(14, 3), sharey=True)
with torch.inference_mode():
    for axis, (name, x) in zip(axes, inputs.items()):
        top = model(x).softmax(-1)[0].topk(4)
        names = [loaded.categories[i].split(",")[0][:14] for i in top.indices]
        axis.bar(names, top.values)
        axis.tick_params(axis="x", rotation=60)
        axis.set_title(name)
plt.show()
# %% [en]
# The forgotten division ruins the answer: velvet, pillow. The other mistakes only shift it, which is worse:
# nobody notices. The model answers in any case; it can't know that its input is wrong. So check two things
# before you believe a result: that mean, deviation and channel order are those of *this* model (the tool reads them
# from the weights' own configuration), and what the model saw: the tool saves it as `…_input.png`.
# %% [fr]
# La division oubliée ruine la réponse : velours, oreiller. Les autres fautes ne font que la déplacer, ce qui est
# pire : personne ne le remarque. Le modèle répond dans tous les cas ; il ne peut pas savoir que son entrée est
# fausse. Avant de croire un résultat, vérifiez donc deux choses : que moyenne, écart-type et ordre des canaux sont ceux de *ce*
# modèle (l’outil les lit dans la configuration des poids), et ce que le modèle a vu : l’outil
# l’enregistre sous `…_input.png`.
