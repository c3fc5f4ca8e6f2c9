"""Load a network with its pretrained weights, divide it into stages, and send images through it or through a part of
it."""
