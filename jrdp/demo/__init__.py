"""`jrdp demo`: a local page to try a model on. `answers.py` is what the page shows, `page.py` the page."""
