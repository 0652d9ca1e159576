"""`python -m milora`, hence `accelerate launch -m milora …`."""

from milora.cli import main

main()
