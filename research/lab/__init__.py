"""Tools of several studies: networks whose features compare images, and distances of two sets."""
