"""A workspace, or a list of latents, as a folder of web pages that needs no program: the supplement of a paper."""

from workbench.exporting.documents.gallery.pages import GalleryOptions, gallery

__all__ = ["GalleryOptions", "gallery"]
