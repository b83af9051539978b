"""Find malignant tumours as outliers among benign ones: low log p, beside an isolation forest.

python examples/anomaly_detection.py       # a minute
"""

from pathlib import Path

import numpy as np
import tyro
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split

import indm


def main(steps: int = 5000, out: Path = Path("runs/example-anomaly-detection")) -> None:
    """steps: of the optimizer, at most; out: the folder for scores.csv."""
    X, is_benign = load_breast_cancer(return_X_y=True)
    X = X[:, :10]  # means of ten measures of the cells
    train, benign = train_test_split(X[is_benign == 1], random_state=0)
    test = np.concatenate([benign, X[is_benign == 0]])
    is_outlier = np.arange(len(test)) >= len(benign)

    density = indm.DensityEstimator(n_models=1, max_steps=steps, random_state=0).fit(train)
    scores = {
        "density": -density.score_samples(test),  # nats: how surprising a row is
        "forest": -IsolationForest(random_state=0).fit(train).score_samples(test),
    }
    for name, score in scores.items():
        print(f"{name:8} ROC AUC {roc_auc_score(is_outlier, score):.3f}")
    out.mkdir(parents=True, exist_ok=True)
    table = np.column_stack([is_outlier, *scores.values()])
    np.savetxt(out / "scores.csv", table, delimiter=",", header="outlier," + ",".join(scores), comments="")


if __name__ == "__main__":
    tyro.cli(main)
