"""One verb of the command line a module; only `jdkd.main` imports them."""
