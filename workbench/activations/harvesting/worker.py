"""One harvest worker process.

``python -m workbench.activations.harvesting.worker WORKSPACE FOLDER SLOT SLOTS COMMAND``, the recipe as JSON on stdin.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from workbench.activations.write.interrupts import Terminated, on_sigterm


def main() -> int:
    """Harvest this worker's share; errors are one line on stderr."""
    from sae.errors import UserError
    from sae.strict import parse_config
    from workbench.activations.harvesting.recipe import HarvestRecipe
    from workbench.activations.harvesting.run import harvest_here
    from workbench.workspace import Workspace

    signal.signal(signal.SIGTERM, on_sigterm)
    parent = os.getppid()
    root, folder, slot, slots, command = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
    Workspace(root)  # knows the models that the recipe names by id
    recipe = parse_config(HarvestRecipe, json.load(sys.stdin), where="recipe")

    def stop_with_parent(done: int, total: int) -> None:
        if os.getppid() != parent:
            raise Terminated

    try:
        harvest_here(recipe, folder, slot=slot, slots=slots, command=command, on_shard=stop_with_parent)
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        return e.exit_code
    except Terminated:
        return 143
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
