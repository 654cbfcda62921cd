"""Reports to look at: one self-contained HTML page of tables, charts and texts. Needs the extra `[report]`."""
