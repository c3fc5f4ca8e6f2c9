"""Train several models, average them, and recommend what to keep."""
