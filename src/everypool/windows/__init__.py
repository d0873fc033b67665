"""Which values belong together: one file per kind of window."""

from everypool.windows.bins import *
from everypool.windows.boxes import *
from everypool.windows.levels import *
from everypool.windows.scan import *
from everypool.windows.sliding import *
from everypool.windows.strips import *
