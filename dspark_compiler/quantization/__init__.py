"""Weights as small integers or floats with scales: what there is, how it is made from floats, how it is measured."""
