"""Train several models, average them, and recommend which model or which average to keep."""
