"""What each function of torch does to images of different sizes in one padded batch: a file for each kind of function."""

from everypool.surgery.rules import axes as axes
from everypool.surgery.rules import statistics as statistics
from everypool.surgery.rules import windows as windows
from everypool.surgery.rules.elements import merged as merged
from everypool.surgery.rules.elements import rule_of as rule_of
from everypool.surgery.rules.table import HARMLESS as HARMLESS
from everypool.surgery.rules.table import LIKE as LIKE
from everypool.surgery.rules.table import SIZED as SIZED
