"""Real tables: rules of their columns, maps with their Jacobians, a run that goes on, and who is
ahead.
"""

import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import norm

from indm.tables.columns import Columns
from research.data import real_tables
from research.data.real_tables import Table, continuous, copy, load, not_linear
from research.records import Records
from research.tables import command, flows, real

NUMBERS = np.random.default_rng(0)


def test_noise_fills_the_steps_of_a_column_and_nothing_else():
    """Halves in steps of ½; a column of which a tenth is 0; one with repeats that are rare, and one
    without any.
    """
    steps, wide, rare = NUMBERS.integers(9, size=2_000) / 2, *NUMBERS.normal(size=(2, 2_000))
    spiked, rare[:80] = np.where(wide < -1.3, 0.0, NUMBERS.normal(size=2_000)), rare[80:160]
    found, widths = continuous(np.column_stack([steps, spiked, rare, NUMBERS.normal(size=2_000)]))
    assert widths == [0.5, pytest.approx(spiked.std() / 100, rel=0.05), 0.0, 0.0]
    np.testing.assert_array_equal(np.floor(2 * found[:, 0]) / 2, steps)
    assert (
        np.ptp(found[spiked == 0, 1]) == pytest.approx(widths[1], rel=0.05)
        and (found[:, 2] == rare).all()
    )


def test_columns_that_others_decide_leave_and_rows_are_there_once():
    X = NUMBERS.dirichlet(np.ones(4), size=500)
    X = np.column_stack([np.full(500, 0.1), X, 3 * X[:, 1] - 7, X[:, 1] ** 2])
    assert not_linear(X) == [1, 2, 3, 6], "constant, the rest of a sum, a repeated column"
    assert len(continuous(np.concatenate([X, X[:50]]))[0]) == 500 and continuous(X, most=20)[
        0
    ].shape == (20, 4)


def test_tables_are_copied_listed_and_checked(tmp_path, monkeypatch, capsys):
    """A table of a repository and one of a package; of a third one the file is missing, of a fourth
    the source.
    """
    rows = NUMBERS.normal(size=(30, 2))
    place, root = tmp_path / "place", tmp_path / "root"
    place.mkdir()
    np.savetxt(place / "data.txt", rows)
    (place / "data.dat").write_text(
        "\n".join(["@data", *(f"{a},{b},class" for a, b in rows.tolist()), ""])
    )
    for words in (
        ["init", "-q"],
        ["add", "."],
        ["-c", "user.name=a", "-c", "user.email=b", "commit", "-qm", "c"],
    ):
        subprocess.run(["git", "-C", place, *words], check=True)
    names = {
        "a": ("uci", "data.txt"),
        "b": ("keel", "data.dat"),
        "c": ("uci", "none.txt"),
        "d": ("adbench", "x"),
    }
    tables = {name: Table(*pair) for name, pair in names.items()}
    monkeypatch.setattr(real_tables, "LIST", Records(tmp_path / "list.csv"))
    copy(root, {"uci": place / ".git", "keel": place}, tables)
    said = [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert said == ["a 30 2", "b 30 2", "c is skipped", "d is skipped"]
    np.testing.assert_allclose([load(root, "a"), load(root, "b")], [rows, rows])
    np.savez(root / "b.npz", X=rows + 1e-9)
    with pytest.raises(ValueError, match=r"b\.npz must be the table"):
        load(root, "b")


def test_densities_in_both_spaces_have_mass_one():
    X = np.exp(NUMBERS.normal(size=(400, 2)) * 0.4) @ np.array([[1.0, 0.5], [0.0, 2.0]])
    columns = Columns.fitted(X, np.zeros((400, 0)), skewed=np.arange(2))
    axis = np.linspace(-1.5, 12, 401)
    grid = np.stack(np.meshgrid(axis, axis), 2).reshape(-1, 2)
    for space in (flows.Space(X, [], 0), real.Mapped(X, 0, columns)):
        log_prob = space.log_prob(grid, lambda z: norm.logpdf(z).sum(1))
        assert np.exp(log_prob).sum() * (axis[1] - axis[0]) ** 2 == pytest.approx(1.0, abs=0.03)
    assert np.ptp(space.log_volume(X)) > 0.1, "not a linear map"


def test_a_ladder_ends_at_the_first_worse_rung_and_numbers_that_are_none_count():
    made = []

    def rung(setting, _):
        made.append(setting["v"])
        model = SimpleNamespace(
            score_samples=lambda rows: np.where(rows[:, 0] > 0, np.nan, setting["v"])
        )
        return SimpleNamespace(fit=lambda rows: model)

    grid, train = [{"v": v} for v in (1.0, 2.0, 1.5, 3.0)], np.array([[1.0], [-1.0]])
    fit = flows.chosen_from(grid, rung, lambda model, *_: made[-1], is_ladder=True)
    record = flows.measured(fit, train, train, train, flows.Space(train, [], 0), 0, 1e6)
    assert made == [1.0, 2.0, 1.5] and record["setting"] == {"v": 2.0}
    assert record["test_nats"] == [flows.NOT_FINITE, 2.0]


def test_a_run_goes_on_with_the_best_rate_and_begins_again_what_another_machine_began(
    tmp_path, monkeypatch
):
    made, values = [], dict(zip(real.RATES, (1.0, 2.0, 0.0), strict=True)) | {None: 0.5}

    def method_of(name, rate):
        made.append((name, rate))
        return lambda train, valid, *_: (
            lambda rows: np.full(len(rows), values[rate]),
            {"valid": values[rate]},
        )

    table, X = Records(tmp_path / "real.csv").at(table="x"), NUMBERS.normal(size=(100, 2))
    monkeypatch.setattr(real, "method_of", method_of)
    monkeypatch.setattr(real, "columns_of", lambda X, *_: Columns.fitted(X, X[:, :0], np.arange(2)))
    assert len(list(real.block(table, X, real.SHORT, 0))) == 3 + 9 and len(table.rows()) == 12
    spaces = real.MAPPED, real.STANDARDISED
    assert [len(list(real.block(table, X, real.LONG, 0, space))) for space in spaces] == [6, 5]
    assert {rate for _, rate in made[12:]} == {None, real.RATES[1]}
    for seed in (0, 1):
        table.at(seconds=real.LONG, seed=seed, space="mapped", method="kde", rate=None).add(
            {"machine": "another"}
        )
    left = [len(list(real.block(table, X, real.LONG, seed))) for seed in (0, 1)]
    assert left == [0, 6], "a block that is whole stays, another is begun again"


def test_the_best_peer_is_compared_row_by_row(tmp_path):
    """Two seeds, of the best peer two rates; its best validation is not its best test. Another peer
    diverged.
    """
    made, rows = Records(tmp_path / "real.csv"), NUMBERS.normal(scale=30.0, size=(2, 50))
    leads = 1 + np.tile([-0.7, 0.7], (2, 25)) + [[-0.05], [0.05]]
    for seed, own in enumerate(rows):
        nats = {("nsf", 0.1): own - leads[seed], ("nsf", 1.0): own + 5} | {
            (n, None): own - 99 for n in real.PEERS[1:]
        }
        for (method, rate), each in ({("indm", None): own} | nats).items():
            found = {
                "setting": {"valid": -(rate or 0)},
                "rows": 99,
                "columns": 4,
                "test_nats": each,
            }
            found |= {"score_cpu_seconds": 1.0, "test_rows": 50}
            cell = made.at(
                table="magic", seconds=9.0, seed=seed, space="mapped", method=method, rate=rate
            )
            cell.add({"diverged": "why"} if method == "maf" else found)
    nats = real.nats_of(made.at(table="magic"), 9.0)
    found, error = real.lead(nats, "nsf"), np.hypot(0.05, leads.std(ddof=1) / 10)
    assert (found.difference, found.standard_error) == (
        pytest.approx(1.0),
        pytest.approx(error, rel=1e-4),
    )
    line = real.summary(made, 9.0).splitlines()[-1]
    assert (
        f"| -1.00 ± {error:.2f} | diverged | -99.00 ± 0.00 | " in line
        and "| nsf | -1.00 | ahead | " in line
    )
    assert line.startswith("| magic | 99 × 4 | 2 | ") and line.endswith(" | 20.0 |")
    other = {
        "behind": {"indm": nats["nsf"], "nsf": nats["indm"]},
        "level": {"indm": rows, "nsf": rows[:, ::-1]},
    }
    assert all(real.word(real.lead(found, "nsf")) == word for word, found in other.items())


def test_the_estimator_of_the_comparison_has_its_own_density():
    X = np.random.default_rng(0).normal(size=(60, 2))
    with command.cpu_clock():
        log_prob, setting = flows.indm(X[5:], X[:5], flows.Space(X, [], 0), 0, 2.0)
    axis = np.linspace(-6, 6, 61)
    mass = np.exp(log_prob(np.stack(np.meshgrid(axis, axis), 2).reshape(-1, 2))).sum() * 0.2**2
    assert (
        mass == pytest.approx(1.0, abs=0.03)
        and setting["unsolved"] == 0
        and setting["ode_error"] < 0.05
    )
