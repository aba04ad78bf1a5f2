"""Art2Prog: a picture becomes the drawing program that made it."""
