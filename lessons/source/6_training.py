# %% [en]
# # 6. Training
#
# Training is a loop: a batch, the logits, a loss, its gradients, a step of the optimiser. We write it once by
# hand, on images made on the spot, and then let the tool fine-tune the bundled model.
# %% [fr]
# # 6. Entraîner
#
# L’entraînement est une boucle : un lot d’images (batch), les logits, une perte, ses gradients, un pas de
# l’optimiseur. Nous l’écrivons une fois à la main, sur des images fabriquées sur place, puis nous laissons
# l’outil adapter le modèle fourni (fine-tuning).
# %%
import os
import sys
import tempfile
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
NAMES = ["circle", "square", "triangle"]


def drawn(kind, rng, side=64):
    """One bright shape of any size, colour and place, on dark noise."""
    noise = rng.normal(50, 15, (side, side, 3)).clip(0, 255).astype(np.uint8)
    image, radius = Image.fromarray(noise), int(rng.integers(12, 22))
    x, y = (int(v) for v in rng.integers(radius, side - radius, 2))
    box, colour = (
        (x - radius, y - radius, x + radius, y + radius),
        tuple(rng.integers(150, 256, 3).tolist()),
    )
    draw = ImageDraw.Draw(image)
    if kind == 0:
        draw.ellipse(box, fill=colour)
    elif kind == 1:
        draw.rectangle(box, fill=colour)
    else:
        draw.polygon(
            [(x, y - radius), (x - radius, y + radius), (x + radius, y + radius)], fill=colour
        )
    return image


rng = np.random.default_rng(0)
labels = torch.tensor([n % 3 for n in range(1200)])
images = [drawn(label, rng) for label in labels]
data = torch.stack(
    [torch.from_numpy(np.array(i)).permute(2, 0, 1).float() / 127.5 - 1 for i in images]
)
train, test = slice(0, 900), slice(900, 1200)  # never look at the same images for both

figure, axes = plt.subplots(1, 9, figsize=(12, 1.6))
for axis, image, label in zip(axes, images, labels):
    axis.imshow(image)
    axis.set_title(NAMES[label])
    axis.axis("off")
plt.show()
# %% [en]
# ## The loop
#
# A small ViT: 64 pixels, patches of 8, three blocks. **Predict:** what is the loss before the first step, if the
# model knows nothing and there are three categories?
# %% [fr]
# ## La boucle
#
# Un petit ViT : 64 pixels, patches de 8, trois blocs. **Prédisez :** que vaut la perte avant le premier pas, si
# le modèle ne sait rien et qu’il y a trois catégories ?
# %%
torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"  # a GPU, where there is one
model = VisionTransformer(
    img_size=64, patch_size=8, embed_dim=64, depth=3, num_heads=4, num_classes=3
).to(device)
loss_of = nn.CrossEntropyLoss()
with torch.inference_mode():
    first = loss_of(model(data[:90].to(device)), labels[:90].to(device)).item()
print(f"{first:.2f}; -log(1/3) = {np.log(3):.2f}")
assert abs(first - np.log(3)) < 0.2

EPOCHS, BATCH = 12, 30
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
steps = EPOCHS * (900 // BATCH)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps)


def accuracy(part):
    model.eval()
    with torch.inference_mode():
        logits = model(data[part].to(device))
    return (logits.argmax(dim=1).cpu() == labels[part]).float().mean().item()


rows = []
for epoch in range(EPOCHS):
    model.train()
    order = torch.randperm(900, generator=torch.Generator().manual_seed(epoch))
    losses = []
    for batch in order.split(BATCH):
        loss = loss_of(model(data[batch].to(device)), labels[batch].to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    rows.append((np.mean(losses), accuracy(train), accuracy(test), schedule.get_last_lr()[0]))
loss_curve, on_train, on_test, rates = (np.array(column) for column in zip(*rows))
# %% [en]
# ## The curves
#
# **Predict:** which accuracy is higher, that of training images or of test images?
# %% [fr]
# ## Les courbes
#
# **Prédisez :** quelle exactitude est la plus haute, celle des images d’entraînement ou celle des images de
# test ?
# %%
figure, axes = plt.subplots(1, 3, figsize=(12, 2.8))
axes[0].plot(loss_curve)
axes[0].set(title="loss", xlabel="epoch")
axes[1].plot(on_train, label="training")
axes[1].plot(on_test, label="test")
axes[1].axhline(1 / 3, color="grey", linestyle=":")
axes[1].set(title="accuracy", xlabel="epoch", ylim=(0, 1))
axes[1].legend()
axes[2].plot(rates)
axes[2].set(title="learning rate", xlabel="epoch")
plt.show()
print(f"training {on_train[-1]:.2f}, test {on_test[-1]:.2f}")
assert on_test[-1] > 0.5
# %% [en]
# They are nearly the same here. What one curve has above the other would have been learned by heart. But the test
# images come from the same drawing function: how the model does on another one, these curves can't tell. Lesson 8
# returns to that.
#
# ## Fine-tuning
#
# A model that has seen photographs needs less. `vitexplain.training.train` takes a folder of folders, keeps a part
# for validation, and by default leaves the bundled model's convolutions as they are. **Predict:** with 60 images
# and two epochs, is it better than chance (1/3)?
# %% [fr]
# Elles sont ici presque égales. Ce que l’une aurait de plus que l’autre serait appris par cœur. Mais les images de
# test viennent de la même fonction de dessin : ce que vaut le modèle sur une autre, ces courbes ne le disent pas. La
# leçon 8 y revient.
#
# ## Le fine-tuning
#
# Un modèle qui a vu des photographies a besoin de moins. `vitexplain.training.train` prend un dossier de dossiers,
# en garde une partie pour la validation, et laisse par défaut telles quelles les convolutions du modèle fourni.
# **Prédisez :** avec 60 images et deux époques, fait-il mieux que le hasard (1/3) ?
# %%
from vitexplain.training import train as training

folder = Path(tempfile.mkdtemp())
for number in range(60):
    path = folder / "data" / NAMES[labels[number]] / f"{number}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    images[number].save(path)
arguments = ["--data", folder / "data", "--output", folder / "model", "--epochs", 2]
arguments += ["--batch_size", 12, "--lr", "1e-3", "--ema", 0.9, "--validation", 0.2]
assert training.main([str(argument) for argument in arguments]) == 0
# %%
loaded = vitexplain.load_model(checkpoint=folder / "model")
with torch.inference_mode():
    inputs = torch.stack([loaded.transform(image) for image in images[900:960]])
    guesses = loaded.model(inputs).argmax(dim=1)
print(loaded.categories, tuple(loaded.model.head.weight.shape))
print(f"test images right: {(guesses == labels[900:960]).float().mean():.2f}")

found = vitexplain.explain(images[900:903], category="top", model=loaded)
figure, axes = plt.subplots(1, 6, figsize=(12, 2.2))
for place, each in enumerate(found):
    axes[2 * place].imshow(images[900 + place])
    axes[2 * place + 1].imshow(each.overlay())
    axes[2 * place + 1].set_title(each.category.name)
for axis in axes:
    axis.axis("off")
plt.show()
# %% [en]
# The head is new (3 × 256 in place of 1000 × 256), the rest began with what it knew. The maps ask the next
# question: is it the shape that the model looks at?
# %% [fr]
# La tête est nouvelle (3 × 256 au lieu de 1000 × 256), le reste est parti de ce qu’il savait. Les cartes posent la
# question suivante : est-ce bien la forme que le modèle regarde ?
