"""Sets how far numbers in float32 that should be equal may be apart. Tests have the same limits."""

# Of one function that is computed in two ways on a CPU, relative and absolute.
FUNCTION = 1e-5
# Of a whole model or one of its blocks, absolute. On accelerators also of one function: their
# exponentials are rougher than those of a CPU.
MODEL = 2e-4
