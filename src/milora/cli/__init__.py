"""The commands, each a few lines that call the floors below; those that import torch are imported late."""

# --help lists the commands in this order.
# isort: off
from milora.cli import (
    lists as lists,
    doctor as doctor,
    runs as runs,
    inspect as inspect,
    chat as chat,
    adapters as adapters,
    compare as compare,
)
from milora.cli.options import app as app
