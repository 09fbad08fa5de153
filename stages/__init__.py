"""The jobs: each reads the recipe, calls the library and leaves an artefact with its manifest."""

import os

# A thread that waits sleeps instead of spinning. With threads that spin, a small model's step took ten times as long
# beside another process on the same two cores. OpenMP reads this once, as torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
