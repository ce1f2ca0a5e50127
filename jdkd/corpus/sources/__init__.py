"""Where collections come from: one module a source, and the registry that names them."""
