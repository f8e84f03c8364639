"""One criterion per file: ``<name>.py`` holds the function ``<name>`` (see ``hf_shear/importance/criterion.py``)."""
