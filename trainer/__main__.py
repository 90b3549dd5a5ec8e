"""`python -m trainer`: what must be in place before TensorFlow is imported, then the program."""

import os
import sys

from trainer.environment import import_tensorflow_quietly

if __name__ == "__main__":
    import_tensorflow_quietly(os.environ)
    from trainer.main import main

    sys.exit(main())
