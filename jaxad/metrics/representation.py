"""How good a representation is, judged by frozen features of images with classes: k-NN vote, linear probe, collapse.

Nothing here imports jax.
"""

from __future__ import annotations

import warnings

import numpy as np

PROBE_ITERATIONS = 300  # of L-BFGS; on standardised features of a trained network the accuracy has settled by then
PROBE_MOST = 20_000  # training images of the linear probe; of more, a seeded draw
BLOCK = 1024  # test images whose similarities to the bank are in memory at once


def knn_top1(train, train_kinds, test, test_kinds, k: int = 20, temperature: float = 0.07) -> float:
    """Accuracy of the weighted k-NN vote: each of the k most similar training images votes exp(cos / temperature).

    Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", CVPR 2018, section 3.4, as
    MoCo, SimSiam and DINO evaluate. Of classes with the same vote the first wins.

    Args:
      train: f32[N, D], the bank · train_kinds: i64[N], its classes.
      test: f32[M, D] · test_kinds: i64[M]; a class that the bank lacks cannot be found.
      k: at most N · temperature: > 0.

    Returns:
      The share of test images whose class won, in [0, 1].

    Raises:
      ValueError: shapes that do not match, no images, values that are not finite, k or temperature out of range.

    >>> bank, kinds = [[1.0, 0.1], [1.0, -0.1], [0.0, 3.0]], [4, 4, 7]
    >>> knn_top1(bank, kinds, [[5.0, 0.0], [0.1, 0.2]], [4, 7], k=2)
    1.0
    """
    train, train_kinds, test, test_kinds = _check(train, train_kinds, test, test_kinds)
    if not 1 <= k <= len(train):
        raise ValueError(f"k={k}: the bank holds {len(train)} images, so k is from 1 to {len(train)}")
    if not temperature > 0:
        raise ValueError(f"temperature={temperature}: the vote exp(cos / temperature) needs one above 0")
    bank, test = _normalise(train), _normalise(test)
    kinds, place = np.unique(train_kinds, return_inverse=True)
    right = 0
    for start in range(0, len(test), BLOCK):
        cosine = test[start : start + BLOCK] @ bank.T
        nearest = np.argpartition(-cosine, k - 1, axis=1)[:, :k]
        near = np.take_along_axis(cosine, nearest, axis=1).astype(np.float64)
        weight = np.exp((near - near.max(axis=1, keepdims=True)) / temperature)  # a common factor changes no winner
        votes = np.zeros((len(cosine), len(kinds)))
        np.add.at(votes, (np.arange(len(cosine))[:, None], place[nearest]), weight)
        right += np.count_nonzero(kinds[votes.argmax(axis=1)] == test_kinds[start : start + BLOCK])
    return float(right / len(test))


def linear_top1(train, train_kinds, test, test_kinds, seed: int = 0) -> float:
    """Accuracy of a linear classifier on frozen features: multinomial logistic regression on standardised features.

    L-BFGS with PROBE_ITERATIONS at most and scikit-learn's default penalty, the same for every representation, so two
    of them can be compared. Departure: the papers' linear evaluation trains by SGD on augmented images for 90 to 100
    epochs; absolute numbers are not theirs.

    Args:
      train: f32[N, D] · train_kinds: i64[N], two classes or more; of more than PROBE_MOST images a draw is taken.
      test: f32[M, D] · test_kinds: i64[M]; a class that training lacks cannot be found.
      seed: of that draw.

    Returns:
      The share of test images called right, in [0, 1].

    Raises:
      ValueError: shapes that do not match, no images, values that are not finite, fewer than two classes.

    >>> linear_top1([[0.0, 5.0], [1.0, 4.0], [8.0, 5.0], [9.0, 4.0]], [0, 0, 1, 1], [[-1.0, 0.0], [7.0, 9.0]], [0, 1])
    1.0
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    train, train_kinds, test, test_kinds = _check(train, train_kinds, test, test_kinds)
    if len(train) > PROBE_MOST:
        rows = np.sort(np.random.default_rng(seed).choice(len(train), PROBE_MOST, replace=False))
        train, train_kinds = train[rows], train_kinds[rows]
    if len(np.unique(train_kinds)) < 2:
        raise ValueError(f"a linear probe needs two classes, all training images are of class {train_kinds[0]}")
    mean = train.mean(axis=0, dtype=np.float64)
    scale = train.std(axis=0, dtype=np.float64)
    # A channel without spread says nothing; divided by its rounding error it would.
    scale[scale <= 1e-6 * np.abs(mean)] = np.inf
    train, test = (((x - mean) / scale).astype(np.float32) for x in (train, test))
    probe = LogisticRegression(max_iter=PROBE_ITERATIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the number of iterations is part of the protocol
        probe.fit(train, train_kinds)
    return float(np.mean(probe.predict(test) == test_kinds))


def collapse(features) -> float:
    """How far features are from collapse: sqrt(D) times the mean over channels of the std of l2-normalised features.

    1: spread evenly over the sphere · 0: all images have the same feature direction. Chen and He, "Exploring Simple
    Siamese Representation Learning", CVPR 2021, section 4.1 and fig. 2.

    Args:
      features: f32[N, D], finite, N >= 2.

    Raises:
      ValueError: another shape, fewer than two images, values that are not finite.

    >>> collapse([[3.0, 4.0], [6.0, 8.0], [0.3, 0.4]]) < 1e-6
    True
    """
    features = _check_features(features, "features")
    if len(features) < 2:
        raise ValueError("collapse needs the features of 2 images or more, got 1")
    spread = _normalise(features).astype(np.float64).std(axis=0)
    return float(spread.mean() * np.sqrt(features.shape[1]))


def chance(train_kinds, test_kinds) -> float:
    """Accuracy without looking at the images: always the most frequent class of training, 1 / classes if all are even.

    Args:
      train_kinds: i64[N], N >= 1 · test_kinds: i64[M], M >= 1. Of classes of one frequency the first is answered.

    >>> chance([0, 0, 1, 2], [0, 1, 1, 2])
    0.25
    """
    kinds, counts = np.unique(np.asarray(train_kinds), return_counts=True)
    test_kinds = np.asarray(test_kinds)
    if not kinds.size or not test_kinds.size:
        raise ValueError(f"no chance level from {kinds.size} training and {test_kinds.size} test classes")
    return float(np.mean(test_kinds == kinds[counts.argmax()]))


def _check(train, train_kinds, test, test_kinds):
    train, test = _check_features(train, "train features"), _check_features(test, "test features")
    train_kinds, test_kinds = np.asarray(train_kinds), np.asarray(test_kinds)
    if train.shape[1] != test.shape[1]:
        raise ValueError(f"train features {train.shape} and test features {test.shape} differ in length")
    for name, features, kinds in (("train", train, train_kinds), ("test", test, test_kinds)):
        if kinds.shape != (len(features),):
            raise ValueError(f"{name} features {features.shape} and {name} kinds {kinds.shape} do not match")
    return train, train_kinds, test, test_kinds


def _check_features(features, name: str) -> np.ndarray:
    features = np.asarray(features, np.float32)
    if features.ndim != 2 or not features.size:
        raise ValueError(f"{name} must be [N, D] with N and D >= 1, got shape {features.shape}")
    bad = np.count_nonzero(~np.isfinite(features))
    if bad:
        raise ValueError(f"{bad} of {features.size} {name} are not finite")
    return features


def _normalise(features: np.ndarray) -> np.ndarray:
    """Rows of length 1; a row of zeros has no direction and stays."""
    length = np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
    return (features / np.where(length > 0, length, 1.0)).astype(np.float32)
