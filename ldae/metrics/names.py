"""What a score is called: FID, KID and IS only where they are read off the network that defines them."""

from __future__ import annotations

from collections.abc import Mapping

INCEPTION = "inception-2015-12-05"  # the features of TensorFlow's Inception-v3 of that day

PUBLISHED: Mapping[str, str] = {"frechet_distance": "FID", "kernel_distance": "KID", "inception_score": "IS"}


def title(score: str, features: str) -> str:
    """`FID` for frechet_distance in Inception's features, `frechet_distance[classifier]` in a classifier's.

    Args:
        score: frechet_distance, kernel_distance, inception_score, precision or recall.
        features: whose they are; INCEPTION for Inception's.
    """
    if features == INCEPTION and score in PUBLISHED:
        return PUBLISHED[score]
    return f"{score}[{features}]"
