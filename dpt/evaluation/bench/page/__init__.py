"""The report as a self-contained HTML page: charts, tables, and pictures side by side."""
