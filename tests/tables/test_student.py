"""The student of a density: near its teacher by as much as it says, normalised, and silent where it knows nothing."""

import pickle

import numpy as np
import pytest

from indm import DensityEstimator, PosteriorEstimator
from indm.tables.student import Student

# What is unlike the draws of a teacher is on any grid.
pytestmark = pytest.mark.filterwarnings("ignore:.* are unlike those that the student was taught")


def ring(n: int, seed: int) -> np.ndarray:
    """A noisy circle."""
    numbers = np.random.default_rng(seed)
    angle, radius = numbers.uniform(0, 2 * np.pi, n), numbers.normal(3.0, 0.3, n)
    return radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)


@pytest.fixture(scope="module")
def pair() -> tuple[DensityEstimator, DensityEstimator]:
    """A density of the ring, from one Gaussian, and the same with a student."""
    teacher = DensityEstimator(max_components=1, n_models=1, max_steps=400, random_state=0).fit(ring(1500, 0))
    return teacher, teacher.distill(max_pairs=3_000, max_steps=800, max_seconds=500, random_state=0)


def normal(std):
    return lambda z, c: -0.5 * ((z[:, 0] - c[:, 0]) / std) ** 2 - np.log(std) - 0.5 * np.log(2 * np.pi)


def test_a_student_of_a_closed_form_learns_it_at_all_conditions() -> None:
    """The teacher is N(c, 1/4), the base N(c, 1): what is learned depends on z and c."""
    numbers, c = np.random.RandomState(0), np.linspace(-2, 2, 101)[:, None]

    def draw(c, numbers):
        return c + 0.5 * numbers.normal(size=c.shape)

    limits = {"max_pairs": 10_000, "max_steps": 600, "max_seconds": 500}
    student = Student.taught(draw, normal(0.5), normal(1.0), c, numbers, **limits)
    z = draw(c, numbers)
    assert np.abs(student.log_prob(z, c, normal(1.0)(z, c)) - normal(0.5)(z, c)).mean() < 0.03
    assert student.difference[0] < 0.03


def test_the_difference_is_what_it_says(pair) -> None:
    teacher, fast = pair
    X = teacher.sample(800, random_state=5)
    off = np.abs(fast.score_samples(X) - teacher.score_samples(X))
    mean, most = fast.student_.difference
    assert off.mean() == pytest.approx(mean, rel=0.3)
    assert 0.9 < (off < most).mean() < 0.99
    start = teacher._start_log_density(teacher.columns_.latents(X, np.zeros((len(X), 0))), np.zeros((len(X), 0)))
    assert mean < 0.2 * np.abs(start + teacher.columns_.log_volume(X) - teacher.score_samples(X)).mean()


def test_the_student_is_a_density(pair) -> None:
    axis = np.linspace(-5, 5, 121)
    grid = np.stack(np.meshgrid(axis, axis), 2).reshape(-1, 2)
    mass = np.exp(pair[1].score_samples(grid)).sum() * (axis[1] - axis[0]) ** 2
    assert mass == pytest.approx(1, abs=0.03) and mass == pytest.approx(pair[1].student_.mass, abs=0.03)


def test_what_the_student_has_not_seen_is_left_to_the_teacher(pair) -> None:
    teacher, fast = pair
    X = np.array([[9.0, 0.0], [3.0, 0.0]])
    slow = teacher.score_samples(X)
    assert fast.score_samples(X)[0] == slow[0] and fast.score_samples(X)[1] != slow[1]
    assert np.array_equal(fast.score_samples(X, tol=0.05), slow)
    assert np.array_equal(fast.sample(5, random_state=0), teacher.sample(5, random_state=0))


def test_a_student_is_pickled_and_a_new_fit_forgets_it(pair) -> None:
    X = ring(50, 3)
    copied = pickle.loads(pickle.dumps(pair[1]))
    assert np.array_equal(copied.score_samples(X), pair[1].score_samples(X))
    assert copied.set_params(max_steps=0).fit(ring(100, 1)).student_ is None and pair[0].student_ is None


def test_a_student_of_conditions_and_whole_numbers() -> None:
    """Probabilities of whole numbers at c sum to 1, and follow c."""
    numbers = np.random.default_rng(0)
    c = numbers.uniform(-1, 1, (1500, 1))
    X = numbers.poisson(np.exp(1 + c)).astype(float)
    options = {"n_models": 1, "max_steps": 250, "random_state": 0}
    teacher = DensityEstimator(discrete=[0], bounds={0: (0, None)}, **options).fit(X, c=c)
    fast = teacher.distill(c, max_pairs=2_000, max_steps=500, max_seconds=500, random_state=0)
    counts = np.arange(40.0)[:, None]
    slow, quick = (np.exp(density.score_samples(counts, np.full((40, 1), 0.7))) for density in (teacher, fast))
    assert quick.sum() == pytest.approx(1, abs=0.03)
    assert np.abs(quick - slow).sum() < 0.1
    assert abs(quick @ counts[:, 0] - np.exp(1.7)) < 0.5


@pytest.mark.long
def test_a_posterior_with_a_student() -> None:
    numbers = np.random.default_rng(0)
    theta = numbers.uniform(-1, 1, (800, 1))
    x = np.abs(theta) + 0.2 * numbers.normal(size=theta.shape)
    options = {"n_models": 1, "max_steps": 300, "random_state": 0}
    posterior = PosteriorEstimator(([-1.0], [1.0]), **options).fit(theta, x)
    fast = posterior.distill(x, max_pairs=4_000, max_steps=800, max_seconds=500, random_state=0)
    draws = posterior.sample(1, x, random_state=0)[:, 0]
    off = np.abs(fast.log_prob(draws, x) - posterior.log_prob(draws, x))
    assert 0 < off.mean() < 0.15 and fast.estimator_.student_.difference[0] == pytest.approx(off.mean(), rel=0.5)
    assert posterior.estimator_.student_ is None


@pytest.mark.long
def test_at_conditions_that_were_not_taught_the_teacher_answers() -> None:
    """The posterior has two peaks at x = 4 and one at 0.2, where the student was taught."""
    numbers = np.random.default_rng(0)
    theta = numbers.normal(size=(800, 1))
    x = theta**2 + 0.3 * numbers.normal(size=theta.shape)
    posterior = PosteriorEstimator(n_models=1, max_steps=300, random_state=0).fit(theta, x)
    fast = posterior.distill([[0.2]], max_pairs=3_000, max_steps=600, max_seconds=500, random_state=0)
    grid = np.linspace(-4, 4, 401)[:, None]
    with pytest.warns(UserWarning, match="401 of 401 rows are unlike those that the student was taught") as told:
        found = fast.log_prob(grid, [4.0])
    assert len(told) == 1 and (found == posterior.log_prob(grid, [4.0])).all()
    slow, quick = posterior.log_prob(grid, [0.2]), fast.log_prob(grid, [0.2])
    assert (slow != quick).any()
    student = fast.estimator_.student_
    mass, draws = np.exp(quick).sum() * 0.02, posterior.sample(2_000, [0.2], random_state=1)
    fresh = np.exp(fast.log_prob(draws, [0.2]) - posterior.log_prob(draws, [0.2])).mean()
    assert mass == pytest.approx(student.mass, abs=4 * student.mass_error)
    assert fresh == pytest.approx(student.mass, abs=4 * student.mass_error)


def test_bad_arguments_are_named(pair) -> None:
    with pytest.raises(ValueError, match="max_seconds must be positive, got 0"):
        pair[0].distill(max_seconds=0)
    with pytest.raises(ValueError, match="c must be left out"):
        pair[0].distill(np.zeros((5, 1)))
