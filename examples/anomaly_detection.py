"""Find malignant tumours as outliers among benign ones: low log p, beside the distance to
neighbours and a forest.

python examples/anomaly_detection.py       # a minute
The table is "WDBC" of the benchmark ADBench with all malignant rows. Half of the benign ones are
fitted.
"""

from pathlib import Path

import numpy as np
import tyro
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split
from sklearn.neighbors import NearestNeighbors

import indm


def main(steps: int = 5000, out: Path = Path("runs/example-anomaly-detection")) -> None:
    """steps: of the optimizer, at most; out: the folder for scores.csv."""
    X, is_benign = load_breast_cancer(return_X_y=True)
    train, benign = train_test_split(X[is_benign == 1], test_size=0.5, random_state=0)
    test = np.concatenate([benign, X[is_benign == 0]])
    is_outlier, scale = np.arange(len(test)) >= len(benign), train.std(0)

    density = indm.DensityEstimator(max_seconds=30, max_steps=steps, random_state=0).fit(train)
    scores = {
        "density": -density.score_samples(test),  # nats: how surprising a row is
        "neighbours": NearestNeighbors(n_neighbors=5)
        .fit(train / scale)
        .kneighbors(test / scale)[0][:, -1],
        "forest": -IsolationForest(random_state=0).fit(train).score_samples(test),
    }
    for name, score in scores.items():
        print(f"{name:10} ROC AUC {roc_auc_score(is_outlier, score):.3f}")
    out.mkdir(parents=True, exist_ok=True)
    columns, names = np.column_stack([is_outlier, *scores.values()]), ",".join(["outlier", *scores])
    np.savetxt(out / "scores.csv", columns, delimiter=",", header=names, comments="")


if __name__ == "__main__":
    tyro.cli(main)
