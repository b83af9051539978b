"""Figures, sheets of images, and self-contained pages."""
