"""The experiments: one file and one line each."""

from __future__ import annotations

from everypool.study.experiments import bags as bags
from everypool.study.experiments import centre as centre
from everypool.study.experiments import costs as costs
from everypool.study.experiments import detection as detection
from everypool.study.experiments import digits as digits
from everypool.study.experiments import far as far
from everypool.study.experiments import frames as frames
from everypool.study.experiments import heads as heads
from everypool.study.experiments import information as information
from everypool.study.experiments import levels as levels
from everypool.study.experiments import own as own
from everypool.study.experiments import patches as patches
from everypool.study.experiments import patterns as patterns
from everypool.study.experiments import retrieval as retrieval
from everypool.study.experiments import series as series
from everypool.study.experiments import sparse as sparse
from everypool.study.experiments import speech as speech
from everypool.study.experiments import texture as texture
from everypool.study.experiments import volumes as volumes
from everypool.study.experiments import witness as witness
