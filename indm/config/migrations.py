"""What options were called before: the one table by which old run folders are read and old names are answered."""

from collections.abc import Mapping

RENAMED = {
    "train.flow_every": "train.flow_update_every",
    "train.keep_every": "train.snapshot_every",
    "train.skips": "train.max_skipped_steps",
    "train.rollbacks": "train.max_rollbacks",
    "evaluate.nll_images": "evaluate.nll_examples",
}


def migrate(recipe: Mapping[str, Mapping]) -> dict[str, dict]:
    """A recipe that an earlier version wrote, with today's names."""
    return {
        table: {RENAMED.get(f"{table}.{key}", f"{table}.{key}").split(".", 1)[1]: value for key, value in keys.items()}
        for table, keys in recipe.items()
    }
