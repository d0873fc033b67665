"""Modern Hopfield networks: association of states with stored patterns, pooling by learned states, and lookup."""

from everypool.blocks.hopfield.layer import *
from everypool.blocks.hopfield.lookup import *
from everypool.blocks.hopfield.pooling import *
