# %% [en]
# # 5 · A Vision Transformer in 60 lines
#
# Patches, positions, attention: what remains is the block around them. Here is the whole network,
# with timm's names, so that timm's weights fit.
# %% [fr]
# # 5 · Un Vision Transformer en 60 lignes
#
# Patchs, positions, attention : il ne reste que le bloc qui les entoure. Voici le réseau entier,
# avec les noms de timm, pour que les poids de timm s'y chargent.
# %%
import matplotlib.pyplot as plt
import torch
from PIL import Image
from torch import nn

from vitexplain import load_model
import timm

photograph = Image.open("examples/panda.jpg").convert("RGB")


# %%
class Patches(nn.Module):
    def __init__(self, patch, width):
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=patch, stride=patch)

    def forward(self, images):  # (B, 3, H, W) -> (B, N, C)
        return self.proj(images).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x):
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.heads, C // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, heads, N, C / heads) each
        attention = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(dim=-1)
        return self.proj((attention @ v).transpose(1, 2).reshape(B, N, C))


class MLP(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x):
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, width, heads, hidden):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = MLP(width, hidden)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))  # tokens meet
        return x + self.mlp(self.norm2(x))  # each token on its own


class ViT(nn.Module):
    def __init__(self, patches, tokens, width, depth, heads, hidden, categories):
        super().__init__()
        self.patch_embed = patches
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + tokens, width))
        self.blocks = nn.Sequential(*(Block(width, heads, hidden) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, categories)

    def forward(self, images):
        patches = self.patch_embed(images)
        x = torch.cat([self.cls_token.expand(len(images), -1, -1), patches], dim=1)
        x = self.norm(self.blocks(x + self.pos_embed))
        return self.head(x[:, 0])  # the class token


# %% [en]
# ## Is it really a ViT?
#
# **Predict.** We load the weights of timm's `vit_tiny_patch16_224` (random ones) with
# `strict=True`, and compare logits. And where are most of a block's parameters: in attention or in
# the MLP?
# %% [fr]
# ## Est-ce vraiment un ViT ?
#
# **Prédire.** Nous chargeons les poids (aléatoires) de `vit_tiny_patch16_224` de timm avec
# `strict=True`, et comparons les logits. Et où sont la plupart des paramètres d'un bloc : dans
# l'attention ou dans le MLP ?
# %%
torch.manual_seed(0)
theirs = timm.create_model("vit_tiny_patch16_224").eval()
ours = ViT(Patches(16, 192), 196, 192, depth=12, heads=3, hidden=768, categories=1000).eval()
ours.load_state_dict(theirs.state_dict(), strict=True)
images = torch.randn(2, 3, 224, 224)
with torch.inference_mode():
    our_logits, their_logits = ours(images), theirs(images)
print("logits from", their_logits.min().item(), "to", their_logits.max().item())
print("largest difference:", (our_logits - their_logits).abs().max().item())
assert their_logits.std() > 0.01  # not all alike: the comparison means something
assert torch.allclose(our_logits, their_logits, atol=1e-4)

parts = {name: sum(p.numel() for p in part.parameters()) for name, part in ours.named_children()}
block = ours.blocks[0]
parts_of_block = {
    name: sum(p.numel() for p in part.parameters()) for name, part in block.named_children()
}
print(parts, parts_of_block)
figure, axes = plt.subplots(1, 2, figsize=(10, 3), constrained_layout=True)
for axis, (name, counts) in zip(
    axes, {"ViT-tiny": parts, "one block": parts_of_block}.items(), strict=True
):
    axis.barh(list(counts), list(counts.values()))
    axis.set_title(f"parameters: {name}")
plt.show()

# %% [en]
# **See.** Every name fits, and the logits are equal up to rounding. Two thirds of a block are MLP:
# it has 8 C² weights, attention 4 C². Head and patches are small.
# %% [fr]
# **Voir.** Tous les noms correspondent, et les logits sont égaux aux arrondis près. Le MLP fait
# les deux tiers d'un bloc : il a 8 C² poids, l'attention 4 C². La tête et les patchs sont petits.

# %% [en]
# ## With trained weights
#
# The bundled model has this very transformer, 4 blocks deep, behind a small CNN. So we hand its
# CNN over as `patches`.
#
# **Predict.** What will it say to the panda, and how sure will it be?
# %% [fr]
# ## Avec des poids entraînés
#
# Le modèle fourni a exactement ce transformer, profond de 4 blocs, derrière un petit CNN. Nous
# passons donc son CNN comme `patches`.
#
# **Prédire.** Que dira-t-il du panda, et avec quelle certitude ?
# %%
loaded = load_model("bundled")
ours = ViT(loaded.model.patch_embed, 196, 256, depth=4, heads=4, hidden=640, categories=1000).eval()
ours.load_state_dict(loaded.model.state_dict(), strict=True)
image = loaded.transform(photograph)[None]
with torch.inference_mode():
    logits = ours(image)
    assert torch.allclose(logits, loaded.model(image), atol=1e-4)
values, indices = logits.softmax(dim=1)[0].topk(5)
names = [loaded.categories[index].split(",")[0] for index in indices.tolist()]

figure, axes = plt.subplots(1, 2, figsize=(10, 3.5), constrained_layout=True)
axes[0].imshow(photograph)
axes[0].axis("off")
axes[1].barh(names[::-1], values.flip(0))
axes[1].set_title("probability")
plt.show()

# %% [en]
# **See.** Giant panda, 0.91. Our 60 lines are the model, and its head is one matrix: a category's
# logit is the scalar product of the class token with that category's row.
# %% [fr]
# **Voir.** « Giant panda » (panda géant), 0,91. Nos 60 lignes sont le modèle, et sa tête est une
# seule matrice : le logit d'une catégorie est le produit scalaire du jeton de classe avec la ligne
# de cette catégorie.

# %% [en]
# ## Which part can go?
#
# **Predict.** We take one kind of part out of all blocks: attention, MLP, norms, or the residual
# (`x +`). Rank them by what happens to the right category's probability, on average over eight
# photographs.
# %% [fr]
# ## Quelle pièce peut-on retirer ?
#
# **Prédire.** Nous retirons de tous les blocs une sorte de pièce : l'attention, le MLP, les
# normalisations, ou le résidu (`x +`). Classez-les selon ce qui arrive à la probabilité de la
# bonne catégorie, en moyenne sur huit photographies.
# %%
truths = {"macaw": 88, "koala": 105, "shepherd": 235, "lemurs": 383}
truths |= {"red_panda": 387, "panda": 388, "viaduct": 888, "coffee": 967}
images = torch.stack(
    [loaded.transform(Image.open(f"examples/{name}.jpg").convert("RGB")) for name in truths]
)


@torch.inference_mode()
def without(part):
    patches = ours.patch_embed(images)
    class_token = ours.cls_token.expand(len(images), -1, -1)
    x = torch.cat([class_token, patches], dim=1) + ours.pos_embed
    for block in ours.blocks:
        norm1, norm2 = (nn.Identity(),) * 2 if part == "norm" else (block.norm1, block.norm2)
        residual = 0 if part == "residual" else 1
        if part != "attention":
            x = residual * x + block.attn(norm1(x))
        if part != "MLP":
            x = residual * x + block.mlp(norm2(x))
    probabilities = ours.head(ours.norm(x)[:, 0]).softmax(dim=1)
    return probabilities[range(len(images)), list(truths.values())].mean().item()


found = {part: without(part) for part in ("nothing", "attention", "MLP", "norm", "residual")}
print({part: round(value, 4) for part, value in found.items()})
figure, axis = plt.subplots(figsize=(7, 3), constrained_layout=True)
axis.bar(list(found), list(found.values()))
axis.set_title("probability of the right category, without ...")
plt.show()

# %% [en]
# **See.** Without attention, the class token never hears of the image; without norms or the
# residual, the later parts get inputs that they have never seen. All three are fatal. The surprise
# is the MLP: although it holds most of the parameters, *this* model is even surer without it. It
# is shallow, its CNN has done most of the work, and this is an experiment on eight photographs,
# not a law: measure on your own model.
#
# **Why the residual?** `x + ...` lets each block *correct* the tokens instead of computing them
# anew, and gradients a way past every block.
#
# **Remember.** A block is two lines: `x + attn(norm1(x))`, `x + mlp(norm2(x))`. In the first,
# tokens meet; in the second, each is on its own.
# %% [fr]
# **Voir.** Sans attention, le jeton de classe n'apprend rien de l'image ; sans normalisation ou
# sans résidu, les pièces suivantes reçoivent des entrées qu'elles n'ont jamais vues. Les trois
# sont fatales. La surprise, c'est le MLP : bien qu'il contienne la plupart des paramètres, *ce*
# modèle est encore plus sûr sans lui. Il est peu profond, son CNN a fait le gros du travail, et
# c'est une expérience sur huit photographies, pas une loi : mesurez sur votre modèle.
#
# **Pourquoi le résidu ?** `x + ...` permet à chaque bloc de *corriger* les tokens au lieu de les
# recalculer, et offre aux gradients un chemin qui contourne chaque bloc.
#
# **À retenir.** Un bloc tient en deux lignes : `x + attn(norm1(x))`, `x + mlp(norm2(x))`. Dans la
# première, les tokens se rencontrent ; dans la seconde, chacun est seul.
