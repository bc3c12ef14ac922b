"""Which layers of a trained model mind 8 bits: python benchmarks/int8_sensitivity.py MODEL DATA [IMGSZ]

Writes a Markdown table to standard output. ``edgecrafter/models/eightbit.py`` was made from such tables (int8.md).
"""

import sys

from edgecrafter import hub
from edgecrafter.data import check, formats
from edgecrafter.export.calibration import Calibration
from edgecrafter.export.sensitivity import sensitivity, table
from edgecrafter.tasks import TASKS

network, info = hub.load(sys.argv[1])
data, size = sys.argv[2], (int(sys.argv[3]),) * 2 if len(sys.argv) > 3 else info.input.size
validation = check.usable(formats.load(data, "val", info.labels, truth=TASKS[info.task].truth))
pictures = [str(validation.path(i)) for i in range(min(24, len(validation)))]
rows = []
for row in sensitivity(network, info, Calibration.of(data, info, size, 64), pictures, validation):
    rows.append(row)
    print(row, file=sys.stderr, flush=True)
print(table(rows))
