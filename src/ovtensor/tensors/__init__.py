"""Any tensor-like object as the right array, or a clear error. Needs NumPy alone."""
