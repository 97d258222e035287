"""Iterative prompt relabelling (arXiv 2312.16204): sample, detect, relabel, merge, train, and again."""
