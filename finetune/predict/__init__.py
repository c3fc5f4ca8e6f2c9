"""Predict with trained models: linear probes, networks, averages, metrics, and labelling of new images."""
