"""This checkpoint has masks. `import hf_shear` before you load it, or load it with trust_remote_code=True, which runs this.

The file is saved beside the weights of every masked checkpoint.
"""

from hf_shear.modeling import *  # noqa: F403
