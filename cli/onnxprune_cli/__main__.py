"""`python -m onnxprune_cli`: the same as the command `onnxprune`."""

from onnxprune_cli.main import main

main()
