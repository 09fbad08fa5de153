"""The jobs: each reads the recipe, calls the library and leaves an artefact with its manifest."""
