"""The network: its pretrained weights, its stages, and the part above a frozen boundary."""
