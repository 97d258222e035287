"""The report as one page that needs nothing else: charts, tables, and pictures of the same noise side by side."""
