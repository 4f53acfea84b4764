"""Scoring representations with frozen features: linear heads, logistic regression, nearest neighbours.

Knows no model: it takes a function from images to features.
"""
