import math

import jax
import numpy as np
import pytest

from jaxad.losses.classification import bce, class_weights

LOGIT = np.float32([0.3, -2.0, 1.7, -0.4, 5.0])
LABEL = np.array([True, False, False, True, True])


def probability(z):
    return 1 / (1 + math.exp(-z))


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.6, 3.0)])
def test_it_is_the_weighted_log_of_the_right_probability(weights):
    expected = [
        -weights[int(label)] * math.log(probability(z) if label else 1 - probability(z))
        for z, label in zip(LOGIT.tolist(), LABEL, strict=True)
    ]
    np.testing.assert_allclose(bce(LOGIT, LABEL, weights), expected, rtol=1e-5)


def test_both_classes_weigh_the_same_and_the_mean_weight_is_one():
    for counts in ((7, 3), (1, 10), (600, 60), (5, 5)):
        weights = class_weights(*counts)
        assert counts[0] * weights[0] == pytest.approx(counts[1] * weights[1])
        assert np.dot(counts, weights) / sum(counts) == pytest.approx(1)
    assert class_weights(5, 5) == (1.0, 1.0)


def test_over_an_epoch_the_balanced_loss_is_the_mean_of_the_means_of_the_classes():
    plain = np.asarray(bce(LOGIT, LABEL))
    balanced = np.mean(bce(LOGIT, LABEL, class_weights(2, 3)))
    assert balanced == pytest.approx((plain[~LABEL].mean() + plain[LABEL].mean()) / 2, rel=1e-6)
    assert balanced != pytest.approx(plain.mean(), rel=1e-2)


@pytest.mark.parametrize("logit", [200.0, -200.0])
def test_a_saturated_logit_has_a_finite_loss_and_a_gradient_where_it_is_wrong(logit):
    for label in (False, True):
        value, slope = jax.value_and_grad(lambda z, label=label: bce(z, np.array([label]))[0])(np.float32([logit]))
        wrong = (logit > 0) != label
        assert value == pytest.approx(200 * wrong)
        assert slope[0] == pytest.approx(wrong * math.copysign(1, logit))
