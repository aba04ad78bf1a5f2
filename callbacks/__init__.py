"""Callbacks that compose with every recipe."""
