"""Kernel templates and schedule rules: how one operator becomes a fast loop nest on one kind of machine."""
