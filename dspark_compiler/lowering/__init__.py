"""Program to a TVM module: physical layouts, kernels for our operators, Relax for the rest."""
