"""The chapters of a report, one for each study."""
