"""Art2Prog: a picture becomes the drawing program that made it."""

from .export import export_program, program_svg
from .language import Language, Program, ProgramError
from .module import Art2Prog
from .network import ProgramNetwork

__all__ = [
    "Art2Prog",
    "Language",
    "Program",
    "ProgramError",
    "ProgramNetwork",
    "export_program",
    "program_svg",
]
