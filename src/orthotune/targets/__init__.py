"""Which modules of a model an adapter goes on: named sets such as ``attention`` or ``default+norms``, for any model."""
