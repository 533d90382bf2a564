"""A backbone with heads on its pooled features, as networks are pre-trained on whole images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxad.models import backbones
from jaxad.types import Array, Tree

LAST = "layer4"


class Seen(NamedTuple):
    """What an encoder makes of a view.

    h: f32[B, C], pooled features · z: f32[B, D], projections; h where there is no projector · p: f32[B, D], what
    SimSiam's predictor makes of z; z where there is none.
    """

    h: Array
    z: Array
    p: Array


class Encoder(NamedTuple):
    """backbone: a ResNet up to layer4 · heads: 'projector', 'predictor' and others, which only `head` applies.

    Parameters and BatchNorm averages are {'backbone': tree, head: tree}; a head without BatchNorm has no averages.
    """

    backbone: nn.Module
    heads: Mapping[str, nn.Module]

    def init(self, key: Array, backbone: Tree, channels: int) -> Tree:
        """{'params', 'batch_stats'} with fresh heads on the variables of a backbone of so many channels."""
        own = {"backbone": backbone}
        width = channels
        for number, (name, head) in enumerate(self.heads.items()):
            # The predictor stands on the projector, every other head on the pooled features.
            pooled = jnp.zeros((2, width if name == "predictor" else channels), jnp.float32)
            made, own[name] = jax.jit(head.init_with_output)(jax.random.fold_in(key, number), pooled)
            width = made.shape[-1] if name == "projector" else width
        return {kind: {name: tree[kind] for name, tree in own.items() if tree.get(kind)} for kind in _KINDS}

    def features(self, variables: Tree, image: Array) -> Array:
        """f[B, H, W, 3] in [0, 1] -> f32[B, C], pooled, by the backbone's running averages."""
        found = self.backbone.apply(variables, backbones.normalise(image), train=False)[LAST]
        return jnp.mean(found.astype(jnp.float32), axis=(1, 2))

    def see(self, params: Tree, stats: Tree, image: Array) -> tuple[Seen, Tree]:
        """One pass in training: what it makes of f[B, H, W, 3] in [0, 1], and its BatchNorm averages afterwards."""
        stats = dict(stats)
        h, stats["backbone"] = _pass(self.backbone, params, stats, "backbone", backbones.normalise(image))
        h = z = p = jnp.mean(h[LAST].astype(jnp.float32), axis=(1, 2))
        for name in ("projector", "predictor"):
            if name in self.heads:
                p, averages = _pass(self.heads[name], params, stats, name, p)
                p = p.astype(jnp.float32)
                z = p if name == "projector" else z
                stats |= {name: averages} if averages else {}
        return Seen(h, z, p), stats

    def see_all(
        self, params: Tree, stats: Tree, views: Mapping[str, Array], joint: bool
    ) -> tuple[dict[str, Seen], Tree]:
        """`see` of every view by name, one after the other; joint: all of them as one batch of BatchNorm."""
        if joint:
            seen, stats = self.see(params, stats, jnp.concatenate(list(views.values())))
            parts = zip(*(jnp.split(leaf, len(views)) for leaf in seen), strict=True)
            return dict(zip(views, (Seen(*part) for part in parts), strict=True)), stats
        found = {}
        for name, image in views.items():
            found[name], stats = self.see(params, stats, image)
        return found, stats

    def head(self, params: Tree, name: str, h: Array) -> Array:
        """f32[B, K], the logits of a head without BatchNorm."""
        return self.heads[name].apply({"params": params[name]}, h).astype(jnp.float32)


_KINDS = ("params", "batch_stats")


def _pass(module: nn.Module, params: Tree, stats: Tree, name: str, x: Array) -> tuple[Any, Tree]:
    variables = {"params": params[name], "batch_stats": stats.get(name, {})}
    result, new = module.apply(variables, x, train=True, mutable=["batch_stats"])
    return result, new.get("batch_stats", {})
