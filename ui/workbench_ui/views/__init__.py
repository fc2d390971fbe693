"""What one page has for itself: its tables, its drawing, its words. What several share is in ``workbench_ui.kit``."""
