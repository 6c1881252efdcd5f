"""Ablations of the papers in miniature, with seeds: ``python -m syncflow.benchmarks.ablations FOLDER``."""
