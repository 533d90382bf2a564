"""How good a pre-trained backbone is, before any anomaly: do its features tell the classes of held-out images?

Nothing is trained or chosen by these numbers. Where images have no classes, only the spread of the features is told.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxad.metrics import representation
from jaxad.types import Data

PROBE = {"knn": 20, "temperature": 0.07, "linear": True, "limit": 20_000}  # where a method's config has no `probe`
Embed = Callable[[str, int], tuple[np.ndarray, np.ndarray]]  # (split, limit) -> features and the records they belong to


def judged_split(data: Data) -> str | None:
    """The split that is judged: the data set's own test images, else the held-out ones; None where there are none."""
    return next((split for split in ("test", "holdout") if data.records(split)), None)


def judge(embed: Embed, data: Data, probe: Mapping[str, Any], *, linear: bool, seed: int) -> dict[str, Any]:
    """{'spread', 'knn_top1', 'linear_top1', 'chance', ...} of the features; what does not exist is None, with a note.

    probe: as PROBE: neighbours and temperature of k-NN, whether there is a linear classifier, and how many training
    images they see, of a larger set a draw · linear: whether to fit the linear classifier, slower than k-NN.
    """
    train, train_rows = embed("train_normal", probe["limit"])
    result: dict[str, Any] = {
        "spread": representation.collapse(train),
        "knn_top1": None,
        "linear_top1": None,
        "chance": None,
        "n_kinds": len(data.spec.kinds),
        "n_probe": len(train),
        "notes": {},
    }
    split = judged_split(data)
    if len(data.spec.kinds) < 2 or split is None:
        why = "no classes" if len(data.spec.kinds) < 2 else "no held-out images: set config.data.holdout above 0"
        return {**result, "notes": {"knn_top1": why, "linear_top1": why}}
    place = {kind: number for number, kind in enumerate(data.spec.kinds)}
    train_kinds, test_kinds = (
        np.array([place.get(record.kind, -1) for record in data.records(part)]) for part in ("train_normal", split)
    )
    test, test_rows = embed(split, 0)
    sets = (train, train_kinds[train_rows], test, test_kinds[test_rows])
    result["n_judged"], result["judged"] = len(test), split
    result["chance"] = representation.chance(sets[1], sets[3])
    k = min(probe["knn"], len(train))
    result["knn_top1"] = representation.knn_top1(*sets, k=k, temperature=probe["temperature"])
    if linear and probe["linear"]:
        result["linear_top1"] = representation.linear_top1(*sets, seed=seed)
    else:
        result["notes"]["linear_top1"] = "config.spd.probe.linear=False"
    return result
