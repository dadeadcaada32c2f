"""The command line ``duostore``."""
