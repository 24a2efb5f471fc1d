"""What a report is made of: recorded episodes, charts, sections, HTML."""
