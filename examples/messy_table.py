"""A messy CSV of 2,000 rows, from reading to odd cells, imputation and synthetic rows.

python examples/messy_table.py       # a minute
It has an identifier, a date, a boolean, a rare level, many exact zeros, a heavy tail, gaps and a
typo.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import tyro

import indm


def write_messy(path: Path, n: int = 2000) -> None:
    rng = np.random.default_rng(0)
    age = rng.integers(18, 80, n)
    plan = np.where(age > 50, "family", rng.choice(["basic", "family"], n))
    plan[::400] = "trial"
    income = np.exp(10 + 0.01 * age + 0.3 * rng.standard_t(5, n))
    table = pd.DataFrame(
        {"customer": [f"C{i:05}" for i in rng.permutation(n)], "age": age, "plan": plan}
    )
    table["joined"] = pd.Timestamp("2015-01-01") + pd.to_timedelta(rng.integers(0, 3000, n), "D")
    table["income"], table["active"] = (
        income.round(2),
        rng.uniform(size=n) < 1 / (1 + np.exp((age - 50) / 10)),
    )
    table["spent"] = np.where(
        table["active"], (0.02 * income * rng.gamma(2.0, size=n)).round(2), 0.0
    )
    table.loc[7, "income"] *= 1000  # a typo
    gaps = rng.uniform(size=(n, 3)) < 0.1
    table[["age", "income", "plan"]] = table[["age", "income", "plan"]].mask(gaps)
    table.to_csv(path, index=False)


def fitted(table: pd.DataFrame, steps: int) -> indm.JointDensityEstimator:
    limits = {"age": (18, 100), "joined": (-1, None), "income": (0, None), "spent": (0, None)}
    return indm.JointDensityEstimator(
        bounds=limits,
        discrete=["age"],
        spikes={"spent": 0},
        max_seconds=20,
        max_steps=steps,
        random_state=0,
    ).fit(table)


def main(steps: int = 5000, out: Path = Path("runs/example-messy-table")) -> None:
    """steps: of the optimizer, at most; out: the folder for messy.csv, filled.csv, drawn.csv and
    cells.png.
    """
    out.mkdir(parents=True, exist_ok=True)
    write_messy(out / "messy.csv")
    table = pd.read_csv(out / "messy.csv")
    try:
        fitted(table, steps)
    except ValueError as error:
        print(error)  # names the identifier; without it, the date; both with what to do
    table["joined"] = (pd.to_datetime(table["joined"]) - pd.Timestamp("2015-01-01")).dt.days
    table = table.drop(columns="customer")
    joint = fitted(table, steps)  # a warning names the typo

    # log p of a cell has the unit of its column, so cells are ranked within their column
    few = table.iloc[:100]
    cells = pd.DataFrame(joint.log_prob_cells(few), columns=table.columns)
    surprise = 1 - cells.rank(pct=True)
    row, column = np.unravel_index(np.nanargmin((cells - cells.median()).to_numpy()), cells.shape)
    print(f"the oddest cell is {table.columns[column]} of row {row}, {few.iloc[row, column]}")
    plt.imshow(surprise, aspect="auto", cmap="magma", vmin=0.9)
    plt.xticks(range(table.shape[1]), table.columns)
    plt.colorbar(label="share of the column that is less odd")
    plt.savefig(out / "cells.png")

    table.iloc[row, column] = np.nan
    joint.impute(table, random_state=0).to_csv(out / "filled.csv", index=False)
    drawn = joint.conditional({"age": (30, 40), "plan": "basic"}).sample(
        200, random_state=0, gaps=True
    )
    drawn.to_csv(out / "drawn.csv", index=False)
    print(drawn.describe().round(1))


if __name__ == "__main__":
    tyro.cli(main)
