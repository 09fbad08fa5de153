"""A rule as a translator: Apertium's dictionaries and grammar, which learn nothing from pairs.

It knows tens of thousands of everyday words and none of a trade's own, so it errs elsewhere than what is trained.
"""

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.errors import StillroomError

COMMAND = "apertium"
BETWEEN = "\n\n"  # a sentence ends at an empty line, and no rule reaches across; one line break is a space to it


@dataclass(frozen=True)
class Apertium:
    """Translates from and into the languages of a pair, "eng-spa", whose rules Debian's apertium-eng-spa holds."""

    pair: str = "eng-spa"

    @property
    def is_installed(self) -> bool:
        """Whether the command and the pair are there."""
        try:
            return bool(self.translate(["a"]))
        except StillroomError:
            return False

    def translate(self, texts: Sequence[str]) -> list[str]:
        """Return translations, in the order of texts and by one call of the command; unknown words stay as they are.

        Spaces and line breaks within a text become one space. Raises StillroomError where the command or the pair is
        missing, and where the answer cannot be told apart text by text. Source: Forcada 2011.
        """
        lines = [" ".join(text.replace("\0", " ").split()) for text in texts]
        answers = iter(self._answers([line for line in lines if line]))
        return [next(answers) if line else "" for line in lines]

    def _answers(self, lines: list[str]) -> list[str]:
        """Return translations of texts of one line, none of them empty."""
        if not lines:
            return []
        said = self._run(BETWEEN.join(lines) + BETWEEN)
        answers = [" ".join(answer.split()) for answer in said.removesuffix(BETWEEN).split(BETWEEN)]
        if len(answers) != len(lines):
            raise StillroomError(
                f"{COMMAND} {self.pair}: found {len(answers)} translations of {len(lines)} texts; expected one each; "
                "give it fewer at once to find the text that it breaks"
            )
        return answers

    def _run(self, text: str) -> str:
        """Return what the command makes of a text."""
        hint = f"install Debian's package apertium-{self.pair}, or leave this teacher out"
        try:
            done = subprocess.run(
                [COMMAND, "-u", "-f", "txt", self.pair], input=text.encode(), capture_output=True, check=False
            )
        except FileNotFoundError as error:
            raise StillroomError(
                f"{COMMAND} {self.pair}: found no command {COMMAND}; expected it on the path; {hint}"
            ) from error
        if done.returncode:
            words = " ".join((done.stderr or done.stdout).decode(errors="replace").split())[:200]
            raise StillroomError(f"{COMMAND} {self.pair}: found {words!r}; expected a translation; {hint}")
        return done.stdout.decode()
