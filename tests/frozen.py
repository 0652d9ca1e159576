"""Imported last by the server that forks processes: what is there is not garbage, and each collection took a second."""

import gc

gc.collect()
gc.freeze()
