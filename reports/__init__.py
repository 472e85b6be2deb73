"""Reports over run records: HTML, markdown, figures and CSV tables; nothing here measures or changes a record."""
