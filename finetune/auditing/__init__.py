"""Audit labelled images: copies of one picture, labels that are probably wrong, odd images, groups and classes."""
