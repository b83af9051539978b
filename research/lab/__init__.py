"""Tools of several studies: networks whose features compare images, and statistics."""
