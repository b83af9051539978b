"""The family of tests: paired by seed and image, adjusted for its planned size."""

import math

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from research.verdict.family import family

PLANNED = [
    ("photos", "indm", "linear"),
    ("photos", "indm", "spline"),
    ("clothes", "indm", "linear"),
]


def bounds(difference, seeds=5, n=400):
    """Bounds of a baseline, and of a variant that differs from it by seed alone."""
    rng = np.random.default_rng(0)
    baseline = rng.normal(2.0, 0.5, (seeds, n))
    return baseline + difference + 0.01 * rng.normal(size=(seeds, 1)), baseline


def test_p_counts_members_that_were_not_made():
    variant, baseline = bounds(-0.05)
    (row,) = family(PLANNED, {PLANNED[1]: (variant, baseline)})
    assert (row["data"], row["variant"], row["baseline"]) == PLANNED[1]
    assert row["difference"] == pytest.approx((variant - baseline).mean())
    # The images share one difference, so that the test is Student's over seeds.
    p = ttest_1samp((variant - baseline).mean(1), 0.0).pvalue
    assert row["p"] == pytest.approx(p, rel=1e-6) and row["p_holm"] == pytest.approx(
        3 * p, rel=1e-6
    )
    assert row["verdict"] == "better"


def test_members_keep_the_planned_order_and_holm_steps_down():
    made = {PLANNED[2]: bounds(-0.02), PLANNED[0]: bounds(0.3)}
    first, second = family(PLANNED, made)
    assert (first["data"], second["data"]) == ("photos", "clothes") and first["verdict"] == "worse"
    assert first["p_holm"] == pytest.approx(3 * first["p"]) and second["p_holm"] == pytest.approx(
        2 * second["p"]
    )


def test_one_seed_has_no_test_and_still_counts():
    rows = family(PLANNED[:2], {PLANNED[0]: bounds(-0.05, seeds=1), PLANNED[1]: bounds(-0.05)})
    assert rows[0]["p"] is None and rows[0]["verdict"] == "untested"
    assert rows[1]["p_holm"] == pytest.approx(2 * rows[1]["p"])
    assert math.isfinite(rows[0]["standard_error"])


def test_members_that_were_not_planned_are_refused():
    with pytest.raises(ValueError, match="planned"):
        family(PLANNED[:1], {PLANNED[1]: bounds(0.0)})
