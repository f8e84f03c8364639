"""``python -m hf_shear.cli``, and ``accelerate launch -m hf_shear.cli VERB`` on several GPUs."""

import sys

from .main import main

sys.exit(main())
