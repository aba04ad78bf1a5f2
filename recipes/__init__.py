"""The command line and the built-in recipes."""
