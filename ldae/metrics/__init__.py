"""Metrics of image quality, segmentation and distances between sets of images."""
