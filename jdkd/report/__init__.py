"""Reports: tables, pictures, pages and model cards of finished runs."""
