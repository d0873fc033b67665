"""Trainable modules from papers, made of the reducers and windows and of convolutions; they load the originals' weights."""

from everypool.blocks.blur import *
from everypool.blocks.corner import *
from everypool.blocks.heads import *
from everypool.blocks.hopfield import *
from everypool.blocks.mixed import *
from everypool.blocks.panet import *
from everypool.blocks.pyramid import *
from everypool.blocks.strip import *
from everypool.blocks.subsampling import *
