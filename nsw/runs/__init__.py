"""Runs: seed, progress, stop and resume, checkpoints, provenance, claims, and everything behind the command line."""
