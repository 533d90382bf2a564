"""Where the peers lean on a library, ours agrees with it: the `parity` extra (torch stands beside each model)."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxad.metrics import pro
from jaxad.scoring import neighbours


def test_nearest_neighbours_are_those_of_faiss():
    faiss = pytest.importorskip("faiss")
    rng = np.random.default_rng(0)
    bank = rng.normal(size=(700, 24)).astype(np.float32)
    query = rng.normal(size=(50, 24)).astype(np.float32) * 2 + 1
    index = faiss.IndexFlatL2(24)
    index.add(bank)
    theirs, rows = index.search(query, 5)
    ours, found = neighbours.nearest(jnp.asarray(query), jnp.asarray(bank), 5)
    np.testing.assert_array_equal(found, rows)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)  # squared, as faiss returns them


def test_regions_are_opencvs_with_eight_neighbours():
    cv2 = pytest.importorskip("cv2")
    masks = np.random.default_rng(1).uniform(size=(6, 40, 50)) > np.linspace(0.5, 0.95, 6)[:, None, None]
    labels = [cv2.connectedComponents(mask.astype(np.uint8), connectivity=8) for mask in masks]
    ours = sorted(pro.regions(masks).area.tolist())
    theirs = sorted(size for count, label in labels for size in np.bincount(label[label > 0], minlength=count)[1:])
    assert ours == theirs and len(theirs) > 50
