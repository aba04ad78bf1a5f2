"""tenfold: Lightning-based, modular training recipes.

Ten published methods, each a LightningModule, a LightningDataModule and YAML recipes, and callbacks
that any of them can switch on. Start with the command line (`tenfold list`) or import from the
subpackages:

- `tenfold.kernels`: tensor functions with a plain-torch reference.
- `tenfold.modules`: networks, LightningModules, metrics, laws.
- `tenfold.datamodules`: datasets and LightningDataModules.
- `tenfold.callbacks`: what any recipe can switch on.
- `tenfold.recipes`: the command line and the built-in YAML.
"""

__version__ = "0.1.0.dev0"
