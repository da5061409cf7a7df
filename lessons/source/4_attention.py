# %% [en]
# # 4 · Attention by hand
#
# Attention is the only place in a transformer where tokens meet. We compute one head of the
# bundled model's last block with four lines, check it, and then look at all heads.
# %% [fr]
# # 4 · L'attention à la main
#
# L'attention est le seul endroit d'un transformer où les tokens se rencontrent. Nous calculons en
# quatre lignes une tête d'attention du dernier bloc du modèle fourni, nous vérifions, puis nous
# regardons toutes les têtes.
# %%
import matplotlib.pyplot as plt
import torch
from PIL import Image

from vitexplain import load_model

loaded = load_model("bundled")
model = loaded.model
photograph = Image.open("examples/dog.jpg").convert("RGB").resize((224, 224))
image = loaded.transform(photograph)[None]

torch.set_grad_enabled(False)  # nothing is trained here
inputs = [model._pos_embed(model.patch_embed(image))]  # of each block
for block in model.blocks:
    inputs.append(block(inputs[-1]))
attention_layer = model.blocks[-1].attn
x = model.blocks[-1].norm1(inputs[3])[0]  # (197, 256), what it reads
print("tokens:", tuple(x.shape), "heads:", attention_layer.num_heads)

# %% [en]
# ## Queries, keys, values
#
# Each token asks (its *query*), offers (its *key*) and has something to hand over (its *value*).
# All three are linear images of the token; timm keeps them in one layer, `qkv`.
#
# **Predict.** 256 dimensions and 4 heads: which shapes have q, k and v of one head?
# %% [fr]
# ## Requêtes, clés, valeurs
#
# Chaque token demande (sa *requête*, query), propose (sa *clé*, key) et a quelque chose à
# transmettre (sa *valeur*, value). Toutes trois sont des images linéaires du token ; timm les
# range dans une seule couche, `qkv`.
#
# **Prédire.** 256 dimensions et 4 têtes : quelles formes ont q, k et v d'une seule tête ?
# %%
head, width = 0, 256 // 4
q_all, k_all, v_all = attention_layer.qkv(x).chunk(3, dim=-1)  # (197, 256) each
columns = slice(head * width, (head + 1) * width)
q, k, v = q_all[:, columns], k_all[:, columns], v_all[:, columns]
print("q, k, v:", tuple(q.shape), tuple(k.shape), tuple(v.shape))

figure, axes = plt.subplots(1, 3, figsize=(12, 4), constrained_layout=True)
for axis, (name, part) in zip(axes, {"q": q, "k": k, "v": v}.items(), strict=True):
    axis.imshow(part, aspect="auto", cmap="RdBu", vmin=-4, vmax=4)
    axis.set_title(f"{name}: 197 tokens, 64 dimensions")
plt.show()

# %% [en]
# **See.** (197, 64): every head reads *all* tokens, and has its own 64 dimensions of query, key
# and value. Heads split the width, not the image.
# %% [fr]
# **Voir.** (197, 64) : chaque tête lit *tous* les tokens, et a ses 64 dimensions à elle de
# requête, de clé et de valeur. Les têtes se partagent la largeur, pas l'image.

# %% [en]
# ## Scores, and a softmax over which axis?
#
# `scores[i, j]` says how well what i asks fits what j offers. A softmax then makes shares of it.
#
# **Predict.** Token i has one portion of attention to spend. So what has to sum to 1: the rows
# (`dim=-1`) or the columns (`dim=0`)?
# %% [fr]
# ## Les scores, et un softmax sur quel axe ?
#
# `scores[i, j]` dit à quel point ce que i demande correspond à ce que j propose. Un softmax en
# fait ensuite des parts.
#
# **Prédire.** Le token i a une portion d'attention à dépenser. Qu'est-ce qui doit donc avoir 1
# pour somme : les lignes (`dim=-1`) ou les colonnes (`dim=0`) ?
# %%
scores = q @ k.T / width**0.5  # (197, 197)
attention = scores.softmax(dim=-1)  # over the keys j
wrong = scores.softmax(dim=0)  # over the queries i: runs, too
for name, matrix in {"dim=-1": attention, "dim=0": wrong}.items():
    rows, of_columns = matrix.sum(dim=1), matrix.sum(dim=0)
    print(f"{name:6}  rows: {rows.min():.2f} to {rows.max():.2f}", end="   ")
    print(f"columns: {of_columns.min():.2f} to {of_columns.max():.2f}")
assert torch.allclose(attention.sum(dim=1), torch.ones(197), atol=1e-5)

figure, axes = plt.subplots(1, 2, figsize=(10, 5), constrained_layout=True)
axes[0].imshow(attention, vmax=attention.quantile(0.99), cmap="viridis")
axes[0].set_title("attention: each row sums to 1")
axes[0].set_xlabel("key j")
axes[0].set_ylabel("query i")
axes[1].hist(attention.sum(dim=0), bins=40)
axes[1].set_title("sums of the columns")
plt.show()

# %% [en]
# **See.** The rows. In code: the **last** axis, that of the keys. The columns have any sum: a
# token that many look at has a bright column. With `dim=0` the code runs as well and the shapes
# are the same; only the assert tells.
# %% [fr]
# **Voir.** Les lignes. Dans le code : le **dernier** axe, celui des clés. Les colonnes ont une
# somme quelconque : un token que beaucoup regardent a une colonne claire. Avec `dim=0`, le code
# tourne aussi et les formes sont les mêmes ; seul l'assert le révèle.

# %% [en]
# ## Why divide by the root of the width?
#
# **Predict.** Without the division by $\sqrt{64} = 8$: is the class token's attention spread
# wider, or does it sit on fewer patches?
# %% [fr]
# ## Pourquoi diviser par la racine de la largeur ?
#
# **Prédire.** Sans la division par $\sqrt{64} = 8$ : l'attention du jeton de classe
# s'étale-t-elle, ou se concentre-t-elle sur moins de patchs ?
# %%
figure, axes = plt.subplots(1, 3, figsize=(12, 4), constrained_layout=True)
axes[0].imshow(photograph)
for axis, (name, row) in zip(
    axes[1:], {"q k / 8": attention[0], "q k": (8 * scores)[0].softmax(dim=-1)}.items(), strict=True
):
    axis.imshow(row[1:].reshape(14, 14), cmap="viridis")
    axis.set_title(f"{name}: largest share {row.max():.2f}")
    print(f"{name:8} largest share {row.max():.3f}, patches for half of it:", end=" ")
    print((row.sort(descending=True).values.cumsum(0) < 0.5).sum().item() + 1)
plt.show()

# %% [en]
# **See.** It sits on fewer. A sum of 64 products has about 8 times the deviation of a single one;
# the division takes that back, so that the softmax neither saturates nor loses its gradient,
# whatever the width.
# %% [fr]
# **Voir.** Elle se concentre. Une somme de 64 produits a un écart-type environ 8 fois plus grand
# qu'un seul produit ; la division le compense, pour que le softmax ne sature pas et garde son
# gradient, quelle que soit la largeur.


# %% [en]
# ## All heads, and the check
#
# Each head averages the values by its attention; the heads are put side by side and mixed by one
# last linear layer, `proj`.
#
# **Predict.** Do the four heads look at the same patches?
# %% [fr]
# ## Toutes les têtes, et la vérification
#
# Chaque tête fait la moyenne des valeurs selon son attention ; on met les têtes côte à côte, et
# une dernière couche linéaire, `proj`, les mélange.
#
# **Prédire.** Les quatre têtes regardent-elles les mêmes patchs ?
# %%
def heads_of(layer, x):
    """(4, 197, 197) attention and (197, 256) output, for x (197, 256)."""
    q, k, v = (
        part.reshape(197, 4, width).transpose(0, 1)  # (4, 197, 64)
        for part in layer.qkv(x).chunk(3, dim=-1)
    )
    attention = (q @ k.transpose(1, 2) / width**0.5).softmax(dim=-1)
    mixed = (attention @ v).transpose(0, 1).reshape(197, 256)  # heads side by side
    return attention, layer.proj(mixed)


all_heads, output = heads_of(attention_layer, x)
assert torch.allclose(all_heads[0], attention, atol=1e-5)  # our head 0
assert torch.allclose(output, attention_layer(x[None])[0], atol=1e-4)  # timm's own layer

figure, axes = plt.subplots(4, 4, figsize=(9, 9), constrained_layout=True)
for number, (block, tokens) in enumerate(zip(model.blocks, inputs[:4], strict=True)):
    of_block, _ = heads_of(block.attn, block.norm1(tokens)[0])
    for head in range(4):
        axes[number, head].imshow(photograph)
        shown = of_block[head, 0, 1:].reshape(14, 14)
        axes[number, head].imshow(shown, alpha=0.7, extent=(0, 224, 224, 0), cmap="viridis")
        axes[number, head].set_title(f"block {number + 1}, head {head}", fontsize=9)
        axes[number, head].axis("off")
plt.show()

# %% [en]
# **See.** Not everywhere. In block 4 all four have found the dog's head; in block 3, head 2 looks
# at the top left corner, where there is no dog. The asserts hold: this is the layer, and there is
# nothing more in it.
#
# **Remember.** Rows are queries, columns are keys, and softmax runs over the last axis. Attention
# says where values are *fetched*, not what is done with them: lesson 7 returns to this.
# %% [fr]
# **Voir.** Pas partout. Dans le bloc 4, toutes les quatre ont trouvé la tête du chien ; dans le
# bloc 3, la tête d'attention 2 regarde le coin supérieur gauche, où il n'y a pas de chien. Les
# asserts passent : la couche, c'est cela, et il n'y a rien d'autre dedans.
#
# **À retenir.** Les lignes sont les requêtes, les colonnes les clés, et le softmax se calcule sur
# le dernier axe. L'attention dit où les valeurs sont *prises*, pas ce qu'on en fait : la leçon 7 y
# revient.
