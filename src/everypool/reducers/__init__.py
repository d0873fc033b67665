"""What becomes of the values that belong together: one file and one line per operation."""

from everypool.reducers.center import *
from everypool.reducers.gem import *
from everypool.reducers.logsumexp import *
from everypool.reducers.lp import *
from everypool.reducers.max import *
from everypool.reducers.mean import *
from everypool.reducers.median import *
from everypool.reducers.power import *
from everypool.reducers.soft import *
from everypool.reducers.unpool import *
