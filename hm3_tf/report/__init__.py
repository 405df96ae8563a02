"""The report: runs on one split as a page of HTML that needs nothing but itself. Imports the `report` extra."""
