"""Decide what to train and how: pure functions from measurements to frozen values. Nothing here imports torch."""
