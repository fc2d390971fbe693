"""``python -m workbench`` is the ``workbench`` command (torchrun needs a module to start)."""

from workbench.cli import main

if __name__ == "__main__":
    main()
