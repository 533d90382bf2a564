"""Image and pixel ranking metrics against sklearn, plain loops and values worked out by hand."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from sklearn import metrics as sk

from jaxad.metrics import image_metrics, pr_curve, ranking, roc_curve

IMAGE_KEYS = {"image_auroc", "image_ap", "image_aupr", "image_f1max", "image_f1max_threshold", "notes"}


def cases():
    """(scores, labels) with no ties, few, and nearly nothing but ties; both classes present, unequal in number."""
    rng = np.random.default_rng(7)
    for n, levels in ((5, 3), (40, 0), (60, 4), (200, 2), (333, 17), (1000, 0)):
        labels = rng.random(n) < 0.3
        labels[:2] = True, False
        scores = rng.standard_normal(n) + 0.8 * labels
        yield (np.floor(scores * levels / 3) if levels else scores), labels


def auroc_by_pairs(scores, labels) -> Fraction:
    wins = Fraction(0)
    for a in scores[labels]:
        for b in scores[~labels]:
            wins += Fraction(1 if a > b else 0) + (Fraction(1, 2) if a == b else 0)
    return wins / (int(labels.sum()) * int((~labels).sum()))


def f1_by_loop(scores, labels):
    """The best F1 and the highest threshold that has it, over all distinct scores, in exact fractions."""
    best, at = Fraction(-1), None
    for threshold in sorted(set(scores.tolist()), reverse=True):
        flagged = scores >= threshold
        tp, fp, fn = ((flagged & labels).sum(), (flagged & ~labels).sum(), (~flagged & labels).sum())
        f1 = Fraction(2 * int(tp), int(2 * tp + fp + fn))
        if f1 > best:
            best, at = f1, threshold
    return float(best), at


def test_auroc_is_the_share_of_ordered_pairs_rounded_once():
    for scores, labels in cases():
        assert image_metrics(scores, labels)["image_auroc"] == float(auroc_by_pairs(scores, labels))


def test_auroc_and_ap_agree_with_sklearn():
    for scores, labels in cases():
        ours = image_metrics(scores, labels)
        assert ours["image_auroc"] == pytest.approx(sk.roc_auc_score(labels, scores), abs=1e-13)
        assert ours["image_ap"] == pytest.approx(sk.average_precision_score(labels, scores), abs=1e-13)


def test_aupr_is_the_trapezoidal_area_of_sklearns_curve():
    for scores, labels in cases():
        precision, recall, _ = sk.precision_recall_curve(labels, scores)
        ours = image_metrics(scores, labels)
        assert ours["image_aupr"] == pytest.approx(sk.auc(recall, precision), abs=1e-13)
        assert ours["image_aupr"] != ours["image_ap"]


@pytest.mark.parametrize(
    "scores, labels, want",
    [
        ([4, 3, 2, 1], [1, 1, 0, 0], 1),
        ([4, 3, 2, 1], [0, 0, 1, 1], Fraction(1, 2) * (Fraction(1, 3) / 2 + (Fraction(1, 3) + Fraction(2, 4)) / 2)),
        ([4, 3, 2, 1], [1, 0, 1, 0], Fraction(1, 2) * (1 + (Fraction(1, 2) + Fraction(2, 3)) / 2)),
        ([1, 1, 1, 1, 1], [1, 0, 0, 0, 0], Fraction(3, 5)),  # (1 + share of anomalies) / 2
    ],
)
def test_aupr_of_cases_worked_out_by_hand(scores, labels, want):
    assert image_metrics(scores, labels)["image_aupr"] == pytest.approx(float(want), abs=1e-15)


def test_best_f1_is_that_of_trying_every_score():
    for scores, labels in cases():
        ours = image_metrics(scores, labels)
        assert (ours["image_f1max"], ours["image_f1max_threshold"]) == f1_by_loop(scores, labels)


@pytest.mark.parametrize(
    "labels, scores, f1, threshold",
    [
        ([0, 1, 1, 1, 1], [-0.5, 0.0, 0.5, 1.0, 2.0], 1.0, 0.0),
        ([0, 1, 1, 1, 1], [-0.5, 0.0, 1.0, 2.0, -0.1], 1.0, -0.1),
    ],
)
def test_best_f1_of_separable_scores_is_one_at_the_lowest_anomaly(labels, scores, f1, threshold):
    ours = image_metrics(scores, labels)
    assert (ours["image_f1max"], ours["image_f1max_threshold"]) == (f1, threshold)


def test_ap_of_perfect_scores_is_one():
    assert image_metrics([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1])["image_ap"] == 1.0


def test_ap_of_a_constant_detector_is_the_share_of_anomalies_and_its_auroc_one_half():
    ours = image_metrics(np.full(1000, 0.3), np.arange(1000) < 50)
    assert ours["image_ap"] == pytest.approx(0.05, abs=1e-16)
    assert ours["image_auroc"] == 0.5


def test_inverted_perfect_detector_has_auroc_zero():
    assert image_metrics([3.0, 2.0, 1.0], [0, 0, 1])["image_auroc"] == 0.0


@pytest.mark.parametrize(
    "scores, labels, reason",
    [([0.1, 0.2], [0, 0], "no anomalous images"), ([0.1, 0.2], [1, 1], "no normal images"), ([], [], "no images")],
)
def test_metrics_that_do_not_exist_are_none_with_their_reason(scores, labels, reason):
    ours = image_metrics(np.array(scores), np.array(labels, bool))
    assert set(ours) == IMAGE_KEYS
    keys = IMAGE_KEYS - {"notes"}
    assert all(ours[key] is None for key in keys)
    assert ours["notes"] == dict.fromkeys(keys, reason)


def test_existing_metrics_are_python_floats_without_notes():
    ours = image_metrics(np.float32([0.1, 0.4, 0.35, 0.8]), [0, 0, 1, 1])
    assert set(ours) == IMAGE_KEYS and ours["notes"] == {}
    assert all(type(value) is float for key, value in ours.items() if key != "notes")


def test_increasing_transforms_and_permutations_change_nothing():
    rng = np.random.default_rng(0)
    for scores, labels in cases():
        want = image_metrics(scores, labels)
        order = rng.permutation(scores.size)
        for other in (np.exp(3 * scores), np.arctan(scores), scores * 1024 - 3, scores**3):
            got = image_metrics(other[order], labels[order])
            for key in ("image_auroc", "image_ap", "image_aupr", "image_f1max"):
                assert got[key] == want[key]
            assert got["image_f1max_threshold"] == other[scores == want["image_f1max_threshold"]][0]


def test_negative_zero_ties_with_zero():
    ours = image_metrics([-0.0, 0.0, 0.0, -0.0], [0, 1, 0, 1])
    assert ours["image_auroc"] == 0.5
    assert np.signbit(ours["image_f1max_threshold"]) == np.False_


def test_every_float_width_is_accepted_and_gives_the_same_ranks():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    scores, labels = np.array([0.5, -1.25, 2.0, 0.5, 3.0, -8.0]), np.array([1, 0, 1, 0, 0, 0], bool)
    want = image_metrics(scores, labels)
    for dtype in (np.float16, ml_dtypes.bfloat16, np.float32):
        assert image_metrics(scores.astype(dtype), labels) == want
    assert image_metrics((scores * 4).astype(np.int32), labels)["image_auroc"] == want["image_auroc"]


def test_non_finite_scores_are_counted_in_one_line():
    with pytest.raises(ValueError, match=r"^3 of 5 scores are not finite \(2 NaN, 1 infinite\)$"):
        image_metrics([0.1, np.nan, np.inf, np.nan, 0.2], [0, 1, 0, 0, 1])


@pytest.mark.parametrize(
    "scores, labels, message",
    [
        ([0.1, 0.2], [0, 1, 1], r"scores \(2,\) and labels \(3,\) differ in shape"),
        ([0.1, 0.2], [0, 255], "labels must be bool or hold 0 and 1 only"),
        ([[0.1], [0.2]], [[0], [1]], r"image scores must be \[N\].*\(2, 1\)"),
        (["a", "b"], [0, 1], "must be real numbers"),
    ],
)
def test_misuse_is_named_in_one_line(scores, labels, message):
    with pytest.raises(ValueError, match=message):
        image_metrics(scores, labels)


def test_area_under_roc_curve_is_the_auroc_and_its_points_are_what_its_thresholds_give():
    for scores, labels in cases():
        fpr, tpr, thresholds = roc_curve(scores, labels)
        assert (fpr[0], tpr[0], thresholds[0]) == (0, 0, np.inf) and (fpr[-1], tpr[-1]) == (1, 1)
        assert np.trapezoid(tpr, fpr) == pytest.approx(float(auroc_by_pairs(scores, labels)), abs=1e-12)
        for x, y, threshold in zip(fpr, tpr, thresholds, strict=True):
            flagged = scores >= threshold
            assert (x, y) == (flagged[~labels].mean(), flagged[labels].mean())
        assert (np.diff(thresholds) < 0).all()


def test_pr_curve_points_are_what_their_thresholds_give_and_step_to_the_ap():
    for scores, labels in cases():
        recall, precision, thresholds = pr_curve(scores, labels)
        for x, y, threshold in zip(recall, precision, thresholds, strict=True):
            flagged = scores >= threshold
            assert (x, y) == (flagged[labels].mean(), labels[flagged].mean())
        steps = np.diff(recall, prepend=0) @ precision
        assert steps == pytest.approx(image_metrics(scores, labels)["image_ap"], abs=1e-13)


def test_thinned_curve_keeps_its_ends_and_stays_close():
    rng = np.random.default_rng(1)
    labels = rng.random(20_000) < 0.4
    scores = rng.standard_normal(labels.size) + 2 * labels
    full, few = roc_curve(scores, labels), roc_curve(scores, labels, points=100)
    assert 50 < few[0].size <= 100 < full[0].size
    assert [array[[0, -1]].tolist() for array in few] == [array[[0, -1]].tolist() for array in full]
    assert np.trapezoid(few[1], few[0]) == pytest.approx(np.trapezoid(full[1], full[0]), abs=1e-3)
    with pytest.raises(ValueError, match="at least 2"):
        roc_curve(scores, labels, points=1)


def test_curves_that_do_not_exist_say_why():
    with pytest.raises(ValueError, match="no anomalous"):
        roc_curve([0.1, 0.2], [0, 0])
    with pytest.raises(ValueError, match="no normal"):
        pr_curve([0.1, 0.2], [1, 1])


def test_exact_dot_is_exact_where_int64_would_overflow():
    a, b = np.array([2**40 + 1, 3]), np.array([2**31 - 5, 7])
    assert ranking.exact_dot(a, b) == (2**40 + 1) * (2**31 - 5) + 21 > 2**63


def test_metrics_import_neither_jax_nor_tensorflow():
    code = "import sys, jaxad.metrics; assert not {'jax', 'flax', 'tensorflow', 'sklearn'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
