"""Measurements of the server, as ratios to a bare app on stock Hypercorn in the same run."""
