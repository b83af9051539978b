"""What several studies share: networks whose features compare images, and distances of two sets."""
