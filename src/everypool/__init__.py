"""Every pooling operation a neural network uses: exact, masked, exportable and swappable.

Pooling is a reducer folded over windows; see `everypool.pool`, and `everypool.operations()` for all there is.
"""

from types import ModuleType as _ModuleType

from everypool._check import InvalidValue as InvalidValue
from everypool.blocks import *
from everypool.explain import Explanation as Explanation
from everypool.explain import explain as explain
from everypool.factory import create as create
from everypool.pool import Operation as Operation
from everypool.pool import Reducer as Reducer
from everypool.pool import Windows as Windows
from everypool.pool import operations as operations
from everypool.pool import pool as pool
from everypool.pool import register as register
from everypool.reducers import *
from everypool.surgery.export import Exported as Exported
from everypool.surgery.export import export as export
from everypool.surgery.find import find as find
from everypool.surgery.sizes import border_effect as border_effect
from everypool.surgery.sizes import masked_forward as masked_forward
from everypool.surgery.sizes import propagate_sizes as propagate_sizes
from everypool.surgery.swap import swap as swap
from everypool.windows import *

__version__ = "0.1.0"

# the star imports above bring the folders' own modules along; `everypool.max` would be a module and no pooling
for _name, _item in list(globals().items()):
    if isinstance(_item, _ModuleType) and _item.__name__ != f"{__name__}.{_name}":
        del globals()[_name]
