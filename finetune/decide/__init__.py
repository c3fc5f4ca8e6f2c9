"""Decide what to train and how: pure functions from what was measured to frozen values. No torch in here."""
