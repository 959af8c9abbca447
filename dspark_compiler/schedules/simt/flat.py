"""Kernels with a thread for each element of an index space, as many a group as suit any device."""

from functools import partial

from dspark_compiler.schedules.gpu import flat

each = partial(flat.each, threads=128)
