"""The report as a self-contained HTML page: charts, tables, and images side by side."""
