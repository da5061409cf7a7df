"""The method that the settings ask for, on batches of pictures, and what it found in words."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace

from torch import Tensor

from vit_grad_rollout import VITAttentionGradRollout
from vit_model import LoadedModel
from vit_rollout import Explanation, VITAttentionRollout
from vit_settings import Settings

TOP = 5


class Explainer:
    """Explains batches as the settings say: (B, 3, H, W) -> one Explanation for each map.

    Raises:
        vit_categories.CategoryError: if the category is none of the model's.
        ValueError: if a setting is out of range, or asks for categories of a model without.
    """

    def __init__(self, settings: Settings, loaded: LoadedModel):
        self.settings, self.loaded = settings, loaded
        of_category = settings.category is not None or settings.top_k is not None
        self.method = {
            "name": "grad_rollout" if of_category else "attention_rollout",
            "head_fusion": settings.head_fusion or ("mean" if of_category else "max"),
            "discard_ratio": settings.discard_ratio,
            "start_block": settings.start_block,
            "as_published": settings.as_published,
        }
        options = {name: value for name, value in self.method.items() if name != "name"}
        if not of_category:
            rollout = VITAttentionRollout(loaded.model, **options)
            self._run: Callable[[Tensor], list[Explanation]] = lambda x: [rollout.explain(x)]
            return
        grad_rollout = VITAttentionGradRollout(loaded.model, **options)
        if settings.category in (None, "top"):
            count = settings.top_k or 1
            if count > len(loaded.categories):
                has = len(loaded.categories) or "no"
                raise ValueError(f"the model has {has} categories, not {count}")
            self._run = lambda x: grad_rollout.explain_several(x, count)
        else:
            index = loaded.category_index(settings.category)
            self._run = lambda x: [grad_rollout.explain(x, [index] * len(x))]

    def __call__(self, tensors: Tensor) -> list[Explanation]:
        return self._run(tensors)

    def beside(self) -> "Explainer":
        """Another one on the same weights, which can run in another thread at the same time.

        Hooks and modes belong to modules, so these are copied; the parameters are frozen.
        """
        model = self.loaded.model.requires_grad_(False)
        shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
        return Explainer(self.settings, replace(self.loaded, model=deepcopy(model, shared)))

    def likeliest(self, probabilities: Tensor) -> list[dict]:
        """The TOP likeliest categories of one picture, from all its probabilities."""
        if not self.loaded.categories:
            return []
        chosen = probabilities.sort(descending=True, stable=True).indices[:TOP]
        return [self.category(index, probabilities) for index in chosen.tolist()]

    def category(self, index: int, probabilities: Tensor) -> dict:
        """Index, name and probability of a category of one picture."""
        name, probability = self.loaded.categories[index], float(probabilities[index])
        return {"index": index, "name": name, "probability": probability}
