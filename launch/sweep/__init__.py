"""Sweeps: many runs that differ in some Gin parameters, and what comes out of them."""
