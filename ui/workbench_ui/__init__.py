"""The workbench in the browser: Streamlit pages over the files of a workspace.

``workbench ui --workspace DIR`` starts it. ``server.py`` is the web application (security headers around ``app.py``),
``app.py`` the router, ``app_pages/`` one file per page, ``kit/`` what the pages share, ``views/`` what one page has,
``components/`` what runs in the browser. Nothing here imports torch before a page needs a model.
"""
