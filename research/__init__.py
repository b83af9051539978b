"""Studies made with indm. They are not part of the package: each uses it as anybody could."""
