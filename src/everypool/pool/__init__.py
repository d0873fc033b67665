"""The one idea: pooling is a reducer folded over windows; and the records from which names, tests and docs are made."""

from everypool.pool.apply import *
from everypool.pool.checks import *
from everypool.pool.folding import *
from everypool.pool.records import *
