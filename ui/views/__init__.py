"""What one page has for itself: its tables, its drawing, its words. What several pages share is in ``ui.kit``."""
