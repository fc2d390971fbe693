"""What a recipe costs before it runs: counts, arithmetic, memory, disk, communication, and the hours on a described
machine.

- :mod:`~workbench.planning.machine`: machines as numbers.
- :mod:`~workbench.planning.calibrate`: this machine, measured.
- :mod:`~workbench.planning.cost`: parts of the work, layouts over devices, and the time they take.
- :mod:`~workbench.planning.counts`: the amounts of each kind of work.
- :mod:`~workbench.planning.recipes`: the plan of a recipe file.
- :mod:`~workbench.planning.sweep`: the same over numbers of devices.

Amounts are counts. Times are a model: each part takes as long as its slowest resource, and parts follow one another.
"""

from workbench.config import kind_of
from workbench.planning.calibrate import machine_named, this_machine
from workbench.planning.cost import Layout, Part, Plan
from workbench.planning.counts import Dictionary, Reading, Run, plan_harvest, plan_pretraining, plan_training
from workbench.planning.machine import Machine, machines
from workbench.planning.recipes import PlannedRecipe, measured_here, plan_recipe, planned_recipe

__all__ = [
    "Dictionary",
    "Layout",
    "Machine",
    "Part",
    "Plan",
    "PlannedRecipe",
    "Reading",
    "Run",
    "kind_of",
    "machine_named",
    "machines",
    "measured_here",
    "plan_harvest",
    "plan_pretraining",
    "plan_recipe",
    "plan_training",
    "planned_recipe",
    "this_machine",
]
