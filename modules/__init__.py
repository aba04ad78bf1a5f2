"""Networks, LightningModules, representations, metrics and laws."""
