"""`python -m trainer`: what must be in place before TensorFlow is imported, then the program."""

import os
import sys

from trainer.environment import import_tensorflow_quietly

import_tensorflow_quietly(os.environ)  # here, and in worker processes, which import this module under another name

if __name__ == "__main__":
    from trainer.main import main

    sys.exit(main())
