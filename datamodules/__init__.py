"""Datasets, LightningDataModules and data pipelines."""
