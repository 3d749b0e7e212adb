"""Experts on real pairs."""
