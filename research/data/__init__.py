"""Data sets made from files of other projects."""
