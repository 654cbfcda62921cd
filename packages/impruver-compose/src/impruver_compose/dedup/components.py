"""Connected components: which conversations are linked by shared buckets, directly or through others."""

from collections.abc import Iterable

import numpy as np


def find_roots(parents: np.ndarray, nodes: np.ndarray) -> np.ndarray:
    """Finds the root of each node's component: the least node in it, once all edges are joined."""
    roots = parents[nodes]
    while True:
        above = parents[roots]
        if np.array_equal(above, roots):
            return roots
        roots = above


def join_edges(parents: np.ndarray, edges: Iterable[tuple[np.ndarray, np.ndarray]]) -> None:
    """Joins the components of both ends of each edge, in place, by hooking roots to lesser ones.

    Shiloach and Vishkin, "An O(log n) parallel connectivity algorithm" (1982), on one array at a time: what is not in
    memory are the edges, whose order does not matter.

    Args:
        parents: the node above each node, itself for a root, (nodes,).
        edges: both ends of some edges, (edges,) each, any number of times.
    """
    for one, other in edges:
        while True:
            roots, other_roots = find_roots(parents, one), find_roots(parents, other)
            apart = roots != other_roots
            if not apart.any():
                break
            one, other, roots, other_roots = one[apart], other[apart], roots[apart], other_roots[apart]
            upper, lower = np.maximum(roots, other_roots), np.minimum(roots, other_roots)
            np.minimum.at(parents, upper, lower)  # a root may get several: the least wins, the others come again
            parents[one], parents[other] = find_roots(parents, one), find_roots(parents, other)
